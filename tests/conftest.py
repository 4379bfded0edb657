"""Fixtures that every test may use: real server processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
from support.balance import long_ones_first
from support.once import shared_folder
from support.server import ServerProcess, start_server

StartServer = Callable[..., ServerProcess]

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many tests as cores run at once: threads of each test would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell makes its background jobs ignore it, and so would every process that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Iterator[None]:
    """The workers of pytest-xdist share the folder of the process that started them."""
    of_the_run = nullcontext() if "PYTEST_XDIST_WORKER" in os.environ else shared_folder()
    with of_the_run:
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On several workers the long tests come first."""
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
        items[:] = long_ones_first(
            items,
            workers,
            slow=lambda item: item.get_closest_marker("slow") is not None,
            file=lambda item: item.path,
        )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the built-in model, shared by the session: leave its live version alone."""
    with start_server(tmp_path_factory.mktemp("server") / "data", "--device", "cpu") as running:
        yield running


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers of one's own: `make_server(*flags, data_dir=..., fresh=...)`."""
    with ExitStack() as stack:

        def make(*flags: str, data_dir: Path | None = None, fresh: bool = False) -> ServerProcess:
            folder = data_dir or tmp_path / "data"
            flags = ("--device", "cpu", *flags)
            return stack.enter_context(start_server(folder, *flags, fresh=fresh))

        yield make
