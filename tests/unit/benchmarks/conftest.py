"""A corpus for the fake encoder, with its vectors as references, and suites as they are run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.corpus import Item, read_items, write_corpus, write_references
from hotclip_server.testing import FakeEncoder

COUNTS = {"text": 32, "tensor": 16, "jpeg_small": 8}
ROOT = Path(__file__).parents[3]
Bench = Callable[..., str]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """`python -m benchmarks`, in this process, which has imported torch already; what a suite
    starts are processes. Gives what it prints."""
    monkeypatch.chdir(ROOT)
    # One thread: the processes would wait for each other's.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "false")

    def run(*arguments: str) -> str:
        status = main(list(arguments))
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out

    return run


@pytest.fixture(scope="session")
def encoder() -> FakeEncoder:
    """The one behind `hotclip_server.testing.running_server`."""
    return FakeEncoder("fake:default")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, encoder: FakeEncoder) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root, COUNTS, encoder.spec.image_size)
    for content in COUNTS:
        rows = [encoder.vector(prepared(encoder, item)) for item in read_items(root, content)]
        write_references(root, content, np.stack(rows))
    return root


def prepared(encoder: FakeEncoder, item: Item):  # type: ignore[no-untyped-def]  # Prepared
    if isinstance(item, str):
        return encoder.prepare_text(item)
    if isinstance(item, bytes):
        return encoder.prepare_image(item)
    return encoder.prepare_tensor(item.tobytes(), *item.shape[:2])
