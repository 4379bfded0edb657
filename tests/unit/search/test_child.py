"""What the vector process does by itself, in the test's own process."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge as engine

from hotclip_server.errors import ResourceExhausted
from hotclip_server.search import generations, wire
from hotclip_server.search.child import VectorProcess, idle_before_build
from hotclip_server.storage.sparse import used_bytes

from .vectors import clustered


async def test_more_than_was_indexed_came_meanwhile_and_is_indexed_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    build = generations.build

    async def held(target: Path, keys: dict[str, str]) -> None:
        begun.set()
        await go_on.wait()
        await build(target, keys)

    monkeypatch.setattr(generations, "build", held)
    vectors = clustered(4000, 2048)
    process = VectorProcess(tmp_path)
    await process._do({"op": "create", "shard": "s", "dim": 2048}, b"")

    async def store(start: int, end: int) -> None:
        rows = [{"i": f"{at}", "r": 1, "p": {}} for at in range(start, end)]
        body = wire.vectors_to_bytes(vectors[start:end])
        await process._do({"op": "upsert", "shard": "s", "points": rows}, body)

    await store(0, 1300)
    await begun.wait()
    await store(1300, 4000)
    go_on.set()
    async with asyncio.timeout(120):
        while process._shards["s"].info()["indexed"] < 4000:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    await process._shards["s"].close()


class Growing:
    """A shard that is only counted; its index is built in a time in proportion to its size."""

    wants_keys = building = False
    build_s = 0.0

    def __init__(self, kb: int) -> None:
        self.folder = Path("s")
        self.indexed, self.unindexed, self.copied = kb, 0, 0

    def unindexed_kb(self) -> int:
        return self.unindexed

    def indexed_kb(self) -> int:
        return self.indexed

    async def optimize(self) -> None:
        self.indexed, self.unindexed = self.indexed + self.unindexed, 0
        self.copied += self.indexed
        self.build_s = self.indexed / 10_000


@pytest.mark.parametrize("pause_s", [0.0, 2.0])
async def test_what_grows_all_the_time_is_not_copied_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    """Written to without a pause, or with one after every so much as is worth a build."""
    process = VectorProcess(tmp_path)
    shard: Any = Growing(2_000_000)
    process._shards["s"] = shard

    def plan_build(name: str, delay: float) -> None:
        if delay <= pause_s:
            planned.append(name)

    planned: list[str] = []
    monkeypatch.setattr(process, "_plan_build", plan_build)
    most = 0
    for _ in range(400):
        shard.unindexed += 10_000
        most = max(most, shard.unindexed)
        process._written(shard)
        if planned:
            planned.clear()
            await shard.optimize()
    written = 400 * 10_000
    assert shard.copied <= 21 * (2_000_000 + written)
    assert shard.copied > written
    # And of what is compared one by one there is never much.
    assert most <= 0.05 * shard.indexed + 10_000


def test_a_part_that_is_small_is_indexed_when_there_is_time() -> None:
    kb = 1000
    assert idle_before_build(10 * kb, 100 * kb, 5.0) == 1.0
    assert idle_before_build(10 * kb, 2_000 * kb, 5.0) == 20.0
    assert idle_before_build(10 * kb, 2_000 * kb, 0.0) == 1.0
    assert idle_before_build(100 * kb, 2_000 * kb, 5.0) == 0.0
    assert idle_before_build(100 * kb, 2_001 * kb, 5.0) == 20.0
    assert idle_before_build(79 * kb, 0, 5.0) == 1.0


async def test_a_nearly_full_disk_refuses_writes_before_the_engine_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine would be killed by a write to a page that the disk has no room for."""
    process = VectorProcess(tmp_path)
    await process._do({"op": "create", "shard": "s", "dim": 8}, b"")
    body = wire.vectors_to_bytes(clustered(1, 8))

    def store(name: str) -> Coroutine[Any, Any, object]:
        points = [{"i": name, "r": 1, "p": {}}]
        return process._do({"op": "upsert", "shard": "s", "points": points}, body)

    await store("before")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=32 << 20))
    for refused in (store("full"), process._do({"op": "create", "shard": "t", "dim": 8}, b"")):
        with pytest.raises(ResourceExhausted) as full:
            await refused
        assert full.value.reason == "DISK_FULL"
    # What is there is opened, read and removed all the same.
    await process._do({"op": "create", "shard": "s", "dim": 8}, b"")
    points, _ = await process._do({"op": "count", "shard": "s", "filter": None}, b"")
    assert points == 1
    deleted, _ = await process._do({"op": "delete", "shard": "s", "ids": ["before"]}, b"")
    assert deleted == 1
    await process._shards["s"].close()


async def test_an_index_build_keeps_the_holes_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def build(target: Path, keys: dict[str, str]) -> None:
        """Nothing: so small a shard gets no index."""

    monkeypatch.setattr(generations, "build", build)
    process = VectorProcess(tmp_path)
    await process._do({"op": "create", "shard": "s", "dim": 8}, b"")
    body = wire.vectors_to_bytes(clustered(1, 8))
    points = [{"i": "p", "r": 1, "p": {}}]
    await process._do({"op": "upsert", "shard": "s", "points": points}, body)
    before = used_bytes(tmp_path)
    await process._do({"op": "optimize", "shard": "s"}, b"")
    assert used_bytes(tmp_path) <= before + (1 << 20) < _length(tmp_path)
    await process._shards["s"].close()


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
async def test_a_search_wakes_no_thread_of_the_engine(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    _, edge = generations.create(folder, 8)
    edge.close()
    _, _, edge = generations.load(folder)
    request = engine.QueryRequest(limit=1, query=engine.Query.Nearest(np.ones(8, np.float32)))
    before = _switches()
    for _ in range(50):
        edge.query(request)
    assert _switches() - before < 50
    edge.close()


def _switches() -> int:
    """How often threads of the engine have given up a processor."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith("edge-search"):
            lines = (task / "status").read_text().splitlines()
            found += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return found


def _length(folder: Path) -> int:
    """Of all files, with their holes."""
    return sum(path.stat().st_size for path in folder.rglob("*"))
