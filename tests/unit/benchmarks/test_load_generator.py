"""The load against a real server stack around an encoder without weights."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from benchmarks.answers import WrongAnswer
from benchmarks.corpus import read_references, write_references
from benchmarks.load_generator import Generator
from benchmarks.segment import CallFailed
from hotclip_server.testing import RunningServer, running_server

SECONDS = 0.2
EXACT = {"clip-text": True, "clip-vision": True}


@pytest_asyncio.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


async def ask(
    server: RunningServer, corpus: Path, load: Callable[[Generator], dict[str, Any]]
) -> dict[str, Any]:
    """Runs a load on a thread, for the server needs this one's loop."""
    generator = Generator()
    told = {"address": server.address, "corpus": str(corpus), "exact": EXACT}
    generator.connect({**told, "server_pid": os.getpid()})
    try:
        return await asyncio.to_thread(load, generator)
    finally:
        generator.close()


@pytest.mark.parametrize(
    ("content", "clients", "items"), [("text", 4, 4), ("tensor", 2, 1), ("jpeg_small", 1, 8)]
)
async def test_a_closed_loop(
    server: RunningServer, corpus: Path, content: str, clients: int, items: int
) -> None:
    told = {"content": content, "clients": clients, "items": items, "seconds": SECONDS}
    found = await ask(server, corpus, lambda generator: generator.closed(told))
    assert found["rate"] > 0
    assert found["min_cosine"] > 0.99999
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert found["generator_cpu"] > 0


@pytest.mark.parametrize("content", ["text", "tensor", "jpeg_small"])
async def test_the_public_client(server: RunningServer, corpus: Path, content: str) -> None:
    told = {"content": content, "clients": 2, "items": 4, "seconds": SECONDS}
    found = await ask(server, corpus, lambda generator: generator.public(told))
    assert found["rate"] > 0
    assert found["min_cosine"] > 0.99999


async def test_a_stream_is_as_full_as_the_server_allows(
    server: RunningServer, corpus: Path
) -> None:
    told = {"content": "text", "items": 2, "seconds": SECONDS}
    found = await ask(server, corpus, lambda generator: generator.stream(told))
    assert found["rate"] > 0
    assert found["min_cosine"] > 0.99999


async def test_latency_counts_from_the_planned_arrival(server: RunningServer, corpus: Path) -> None:
    """A server that takes longer than the gap between arrivals falls behind; a generator that
    waited for it would not see that."""
    server.encoder.faults.delay_s = 0.1
    told = {"content": "jpeg_small", "rate": 20.0, "seconds": 0.5, "seed": 3}
    found = await ask(server, corpus, lambda generator: generator.open(told))
    assert found["p50_ms"] >= 100
    assert found["lag_ms"] < found["p50_ms"]
    assert found["min_cosine"] > 0.99999


async def test_a_wrong_vector_is_found(server: RunningServer, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_bytes((corpus / "text.json").read_bytes())
    write_references(tmp_path, "text", np.roll(read_references(corpus, "text"), 1, axis=0))
    told = {"content": "text", "clients": 2, "items": 4, "seconds": SECONDS}
    with pytest.raises(WrongAnswer, match="vectors are not open_clip's"):
        await ask(server, tmp_path, lambda generator: generator.closed(told))


async def test_an_item_that_failed_is_found(server: RunningServer, corpus: Path) -> None:
    server.encoder.faults.fails = lambda item: item.array[0] == ord("a")
    told = {"content": "text", "clients": 2, "items": 4, "seconds": SECONDS}
    with pytest.raises(WrongAnswer, match="item 0"):
        await ask(server, corpus, lambda generator: generator.closed(told))


async def test_a_call_that_failed_is_found(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text('["one", ""]', encoding="utf-8")
    write_references(tmp_path, "text", np.eye(2, 32, dtype=np.float32))
    await server.app.parts.batcher.stop()
    told = {"content": "text", "clients": 1, "items": 1, "seconds": SECONDS}
    with pytest.raises(CallFailed):
        await ask(server, tmp_path, lambda generator: generator.closed(told))


async def test_clients_never_ask_the_same_at_a_time(server: RunningServer, corpus: Path) -> None:
    told = {"content": "jpeg_small", "clients": 9, "items": 1, "seconds": SECONDS}
    with pytest.raises(ValueError, match="too few"):
        await ask(server, corpus, lambda generator: generator.closed(told))
