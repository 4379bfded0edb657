"""When the vector process builds an index, and what it does if it can't."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from hotclip_server.errors import ResourceExhausted
from hotclip_server.search import child, generations, wire
from hotclip_server.search.child import VectorProcess, idle_before_build
from hotclip_server.search.shard import ShardDamaged

from .vectors import clustered


class Counted:
    """A shard of 2 GB that is only counted; 15 MB are not indexed and the last build took 600 s."""

    building = False
    build_s = 600.0

    def __init__(self, process: VectorProcess) -> None:
        self.folder = Path("s")
        self.unindexed = 15_000
        self.wants_keys = False
        self.tries = 0
        self.failure: Exception | None = None
        self.built = asyncio.Event()
        self.as_any = cast(Any, self)
        process._shards["s"] = self.as_any

    def unindexed_kb(self) -> int:
        return self.unindexed

    def indexed_kb(self) -> int:
        return 2_000_000

    async def optimize(self) -> None:
        self.tries += 1
        if self.failure is not None:
            raise self.failure
        self.unindexed, self.wants_keys = 0, False
        self.built.set()


async def _built(shard: Counted, within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        await shard.built.wait()


async def test_a_search_does_not_wait_for_the_rest_that_writes_wait_for(tmp_path: Path) -> None:
    process = VectorProcess(tmp_path)
    shard = Counted(process)
    process._written(shard.as_any)
    await asyncio.sleep(0.05)
    shard.wants_keys = True
    process._asked(shard.as_any)
    await _built(shard)


@pytest.mark.parametrize("keys", [False, True])
async def test_what_becomes_overdue_does_not_wait_for_the_rest(tmp_path: Path, keys: bool) -> None:
    process = VectorProcess(tmp_path)
    shard = Counted(process)
    process._written(shard.as_any)
    shard.unindexed, shard.wants_keys = 1_000_000, keys
    process._written(shard.as_any)
    await _built(shard, child._IDLE_S / 2)


async def test_a_write_brings_forward_what_a_search_wants(tmp_path: Path) -> None:
    """Though less than is worth an index is not indexed."""
    process = VectorProcess(tmp_path)
    shard = Counted(process)
    process._written(shard.as_any)
    shard.unindexed, shard.wants_keys = 0, True
    process._written(shard.as_any)
    await _built(shard)


@pytest.mark.parametrize("keys", [False, True])
async def test_writes_put_off_what_only_they_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: bool
) -> None:
    monkeypatch.setattr(child, "_IDLE_S", 1.0)
    process = VectorProcess(tmp_path)
    shard = Counted(process)
    shard.build_s, shard.wants_keys = 0.0, keys
    process._written(shard.as_any)
    first = process._timers["s"].when()
    for _ in range(5):
        await asyncio.sleep(0.02)
        process._written(shard.as_any)
        process._asked(shard.as_any)
    assert (process._timers["s"].when() == first) is keys
    await _built(shard)


def test_of_a_large_shard_no_more_is_compared_one_by_one_than_of_a_smaller() -> None:
    large = 20 << 20
    assert idle_before_build(255 << 10, large, 600.0) == 2400.0
    assert idle_before_build(256 << 10, large, 600.0) == 0.0
    assert idle_before_build(150_000, 2_000_000, 600.0) == 0.0  # 5 % is less.


async def test_a_build_that_fails_is_not_tried_with_every_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = VectorProcess(tmp_path)
    shard = Counted(process)
    shard.failure, shard.unindexed, shard.wants_keys = OSError("no room"), 1_000_000, True
    for _ in range(20):
        process._written(shard.as_any)
        process._asked(shard.as_any)
        await asyncio.sleep(0.005)
    assert shard.tries == 1
    assert process._timers["s"].when() > asyncio.get_running_loop().time() + 50
    # Later it is tried again, without a write, and said no more.
    process._call_off("s")
    process._backing_off["s"] = 0.0
    monkeypatch.setattr(child, "_BACK_OFF_S", 0.05)
    process._written(shard.as_any)
    async with asyncio.timeout(5):
        while shard.tries < 4:  # noqa: ASYNC110 - what it counts has no event
            await asyncio.sleep(0.01)
    assert capsys.readouterr().err.count("no room") == 1
    shard.failure = None
    await _built(shard)
    await asyncio.sleep(0)
    assert not process._backing_off


async def test_a_build_that_took_long_to_fail_rests_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_BACK_OFF_S", 0.0)
    monkeypatch.setattr(child, "_RESTS", 1000)
    process = VectorProcess(tmp_path)
    shard = Counted(process)
    shard.unindexed = 1_000_000
    tried = asyncio.Event()

    async def fails_late() -> None:
        tried.set()
        await asyncio.sleep(0.1)
        raise OSError("a crash")

    shard.as_any.optimize = fails_late
    process._written(shard.as_any)
    await tried.wait()
    async with asyncio.timeout(5):
        while not process._backing_off:  # noqa: ASYNC110 - what it counts has no event
            await asyncio.sleep(0.01)
    assert process._timers["s"].when() > asyncio.get_running_loop().time() + 50
    process._call_off("s")


async def test_for_lack_of_room_no_wish_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    async def build(target: Path, keys: dict[str, str]) -> None:
        made.extend(keys)

    monkeypatch.setattr(generations, "build", build)
    process = VectorProcess(tmp_path)
    await process._do({"op": "create", "shard": "s", "dim": 8}, b"")
    body = wire.vectors_to_bytes(clustered(1, 8))
    points = [{"i": "p", "r": 1, "p": {"of": 1}}]
    await process._do({"op": "upsert", "shard": "s", "points": points}, body)
    is_one = {"key": "of", "values": [1], "gt": None, "gte": None, "lt": None, "lte": None}
    await process._do({"op": "count", "shard": "s", "filter": {"must": [is_one]}}, b"")
    with monkeypatch.context() as full:
        usage = shutil.disk_usage(tmp_path)
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=32 << 20))
        with pytest.raises(ResourceExhausted):
            await process._do({"op": "optimize", "shard": "s"}, b"")
    assert made == []
    await process._do({"op": "optimize", "shard": "s"}, b"")
    assert len(made) == 1
    await process._do({"op": "optimize", "shard": "s"}, b"")
    assert len(made) == 1
    await process._shards["s"].close()


class Told:
    """A link that keeps what is sent."""

    def __init__(self) -> None:
        self.header: dict[str, Any] = {}

    def send(self, frame: bytes) -> None:
        taken = wire.take(bytearray(frame))
        assert taken is not None
        self.header = taken[0]

    async def room(self) -> None:
        pass


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("by_engine", [False, True])
async def test_a_full_quota_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, by_engine: bool
) -> None:
    process = VectorProcess(tmp_path)
    text = os.strerror(code)
    error = RuntimeError(f"IO error: {text}") if by_engine else OSError(code, text)

    def fails(*_: object) -> Any:
        raise error

    with pytest.raises(type(error)) as raised:
        process._opened("s", fails)
    assert not isinstance(raised.value, ShardDamaged)
    monkeypatch.setattr(process, "_do", fails)
    told: Any = Told()
    await process._answer(told, {"n": 1}, b"")
    assert told.header["error"][0] == "disk_full"
