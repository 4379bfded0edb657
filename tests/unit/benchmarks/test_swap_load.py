"""The load beside swaps against a real server stack around encoders without weights."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.corpus import read_items, write_corpus, write_references
from benchmarks.history import Asked, Move, violations
from benchmarks.swap_load import CONTENTS, MOST_ITEMS, SwapLoad
from hotclip_server.testing import FakeEncoder, FakeLoader, RunningServer, running_server

from .conftest import prepared

SOURCES = ("fake:default", "fake:b")
RATE = 200.0
EXACT = {"clip-text": True, "clip-vision": True}


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        await running.app.parts.registry.load_version("", SOURCES[1])
        yield running


@pytest.fixture
def load(server: RunningServer, tmp_path: Path) -> Iterator[SwapLoad]:
    """Connected, with what is right for both versions."""
    loader = FakeLoader()
    versions = {loader.import_source(source).id: FakeEncoder(source) for source in SOURCES}
    for version, encoder in versions.items():
        folder = tmp_path / version
        write_corpus(folder, dict.fromkeys(CONTENTS, 8), encoder.spec.image_size)
        for content in CONTENTS:
            rows = [encoder.vector(prepared(encoder, item)) for item in read_items(folder, content)]
            write_references(folder, content, np.stack(rows))
    load = SwapLoad()
    exact = dict.fromkeys(versions, EXACT)
    told = {"address": server.address, "corpus": str(tmp_path), "server_pid": os.getpid()}
    load.connect({**told, "exact": exact})
    yield load
    load.close()


async def window(load: SwapLoad, seconds: float = 0.4) -> dict[str, Any]:
    load.begin({"rate": RATE, "seed": 1})
    await asyncio.sleep(seconds)
    return await asyncio.to_thread(load.end, {})


async def test_every_answer_is_checked(server: RunningServer, load: SwapLoad) -> None:
    registry = server.app.parts.registry
    first, second = registry.model_state().live_version, registry.model_state().staged_versions[0]
    clock = time.monotonic
    load.begin({"rate": RATE, "seed": 1})
    moves = []
    for version in (second, first):
        await asyncio.sleep(0.15)
        called = clock()
        await registry.activate("", version)
        moves.append(Move(called, clock(), version))
    await asyncio.sleep(0.15)
    found = await asyncio.to_thread(load.end, {})
    assert (found["errors"], found["refused"], found["mixed"]) == ({}, {}, [])
    asked = [Asked(*call) for call in found["asked"]]
    assert len(asked) > 0.2 * RATE
    assert {call.version for call in asked} == {first, second}
    assert all(call.planned <= call.sent <= call.answered for call in asked)
    assert violations(first, moves, asked) == []
    assert len(violations(second, [], asked)) > 0
    assert found["pause_ms"] > 0
    assert max(len(request.items) for request in load._requests) == MOST_ITEMS


async def test_the_same_calls_at_the_same_moments(load: SwapLoad) -> None:
    plans = []
    for _ in range(2):
        planned = sorted(call[0] for call in (await window(load))["asked"])
        plans.append(np.diff(planned))
    both = min(map(len, plans))
    assert both > 0.1 * RATE
    np.testing.assert_allclose(plans[0][:both], plans[1][:both], atol=1e-6)


async def test_an_answer_of_other_weights_is_found(server: RunningServer, load: SwapLoad) -> None:
    wrong = FakeEncoder("fake:wrong")
    server.encoder.vector = wrong.vector  # type: ignore[method-assign]  # that is the fault
    found = await window(load)
    assert len(found["mixed"]) >= len(found["asked"]) > 0


async def test_calls_that_are_refused_are_counted(server: RunningServer, load: SwapLoad) -> None:
    await server.app.parts.batcher.stop()
    found = await window(load, 0.1)
    assert sum(found["refused"].values()) > 0
    assert (found["asked"], found["errors"]) == ([], {})
    assert "UNAVAILABLE" in next(iter(found["refused"]))
