"""Fixtures that every test may use: real server processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.server import ServerProcess, start_server

StartServer = Callable[..., ServerProcess]

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many tests as cores run at once: threads of each test would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


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
