"""Files of images that no point has any more leave the disk while the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from support.local_store import LocalStore
from support.search import World, search_world

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.errors import ResourceExhausted
from hotclip_server.search import records, sweeping
from hotclip_server.search.blobs import SourceBlobs
from hotclip_server.search.reader import Fields


def item(number: int, content: bytes = b"\x89PNG") -> EncodeItem:
    return EncodeItem(image=content + number.to_bytes(4, "big") * (10 << 10))


def point(number: int, of: EncodeItem | None = None) -> search_pb2.Point:
    return search_pb2.Point(id=f"p{number}", item=of or item(number))


class Refusing(LocalStore):
    """Has no room while `full`, and says so when `decided`."""

    full = False

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked, self.decided = asyncio.Event(), asyncio.Event()
        self.decided.set()

    async def _call(
        self, op: str, *, body: bytes = b"", timeout_s: float | None = None, **header: object
    ) -> tuple[Any, bytes]:
        if op == "upsert" and self.full:
            self.asked.set()
            await self.decided.wait()
            raise ResourceExhausted("no room", reason="DISK_FULL")
        return await super()._call(op, body=body, timeout_s=timeout_s, **header)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(sweeping, "PATIENCE_S", 0.05)
    monkeypatch.setattr(sweeping, "GRACE_S", 0.05)
    async with search_world(tmp_path, store=Refusing(tmp_path / "vectors")) as world:
        await world.collections.catalogue.create("c")
        await world.collections.writer.upsert("c", [point(n) for n in range(6)])
        yield world


def count(folder: Path) -> int:
    return len(SourceBlobs(folder / "sources").names())


async def until(folder: Path, files: int) -> None:
    async with asyncio.timeout(30):
        while count(folder) != files:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)


async def check(world: World, numbers: list[int]) -> None:
    """These points give their images back."""
    got = await world.collections.reader.get("c", [f"p{n}" for n in range(9)], Fields(sources=True))
    assert {p.id: p.source for p in got.points} == {
        f"p{n}": item(n).SerializeToString() for n in numbers
    }


async def test_deleted_replaced_and_dropped_images_go(tmp_path: Path, world: World) -> None:
    assert count(tmp_path) == 6
    await world.collections.writer.delete("c", ["p0", "p1"])
    await until(tmp_path, 4)
    await world.collections.writer.upsert("c", [point(2, EncodeItem(text="a text"))])
    await until(tmp_path, 3)
    # Another point with the same image keeps it.
    await world.collections.writer.upsert("c", [point(0, item(3))])
    await world.collections.writer.delete("c", ["p0", "p4"])
    await until(tmp_path, 2)
    # What can't be encoded has no row, nor a file for long.
    done = await world.collections.writer.upsert("c", [point(7, item(7, b"none"))])
    assert list(done.errors) == [0]
    await until(tmp_path, 2)
    await world.collections.writer.delete("c", ["p2"])
    await check(world, [3, 5])
    await world.collections.delete("c")
    await until(tmp_path, 0)


async def test_a_refused_write_leaves_the_old_images_alone(tmp_path: Path, world: World) -> None:
    world.store.full = True
    with pytest.raises(ResourceExhausted):
        await world.collections.writer.upsert("c", [point(0, item(7)), point(8)])
    assert count(tmp_path) == 8
    world.store.full = False
    await world.collections.writer.settle("c")
    await until(tmp_path, 6)
    await check(world, list(range(6)))


async def test_what_a_write_replaces_stays_until_it_is_decided(
    tmp_path: Path, world: World
) -> None:
    world.store.full = True
    world.store.decided.clear()
    writing = asyncio.create_task(world.collections.writer.upsert("c", [point(0, item(7))]))
    await asyncio.wait_for(world.store.asked.wait(), 30)
    world.collections._sweeper.released(1)
    await asyncio.sleep(0.4)
    world.store.decided.set()
    with pytest.raises(ResourceExhausted):
        await writing
    world.store.full = False
    await world.collections.writer.settle("c")
    await until(tmp_path, 6)
    await check(world, list(range(6)))


async def test_an_upsert_that_has_put_its_file_keeps_it(tmp_path: Path, world: World) -> None:
    """Its row is not committed before it has waited for another write."""
    async with world.collections.catalogue.lock("c"):
        writing = asyncio.create_task(world.collections.writer.upsert("c", [point(8)]))
        await until(tmp_path, 7)
        # Meanwhile others let files go again and again.
        for number in (0, 1):
            await world.database.run(
                lambda c, number=number: _forget(c, f"p{number}")  # type: ignore[misc]  # mypy can't infer lambdas with defaults
            )
            world.collections._sweeper.released(1)
            await until(tmp_path, 6 - number)
            await asyncio.sleep(0.2)
        assert count(tmp_path) == 5
    await writing
    world.collections._sweeper.released(1)
    await asyncio.sleep(0.3)
    got = await world.collections.reader.get("c", ["p8"], Fields(sources=True))
    assert got.points[0].source == item(8).SerializeToString()


def _forget(connection: Connection, point_id: str) -> None:
    records.remove_sources(connection, "c", [point_id])


async def test_it_is_not_looked_for_at_every_deletion(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    names = SourceBlobs.names

    def look(blobs: SourceBlobs) -> set[str]:
        nonlocal looks
        looks += 1
        return names(blobs)

    monkeypatch.setattr(SourceBlobs, "names", look)
    monkeypatch.setattr(sweeping, "PATIENCE_S", 600.0)
    monkeypatch.setattr(sweeping, "MANY", 3)
    for number in range(2):
        await world.collections.writer.delete("c", [f"p{number}"])
    await asyncio.sleep(0.1)
    assert looks == 0
    await world.collections.writer.delete("c", ["p2"])
    async with asyncio.timeout(30):
        while len(names(world.collections._blobs)) != 3:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
    assert looks == 1


async def test_a_sweep_that_fails_is_done_again(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = asyncio.Event()
    loop = asyncio.get_running_loop()
    with monkeypatch.context() as patch:

        def fail(_: SourceBlobs) -> set[str]:
            loop.call_soon_threadsafe(failed.set)
            raise OSError("the disk is away")

        patch.setattr(SourceBlobs, "names", fail)
        await world.collections.writer.delete("c", ["p0"])
        await asyncio.wait_for(failed.wait(), 30)
    await until(tmp_path, 5)


def test_what_is_held_or_was_meanwhile_stays(tmp_path: Path) -> None:
    blobs = SourceBlobs(tmp_path)
    with blobs.holding() as hold:
        early, late, idle = (hold.put(data) for data in (b"early", b"late", b"idle"))
    all_of_them = {early, late, idle}
    assert blobs.names() == all_of_them
    with blobs.holding() as before:
        before.keep([early])
        with blobs.sparing() as spared:
            # Put again, and its row committed, after it was found to be idle.
            with blobs.holding() as hold:
                assert hold.put(b"late") == late
            assert blobs.remove(all_of_them, spared) == 1
        assert blobs.names() == {early, late}
        with blobs.sparing() as spared:
            assert blobs.remove(all_of_them, spared) == 1
    with blobs.sparing() as spared:
        assert blobs.remove(all_of_them, spared) == 1
    assert blobs.names() == set()


def test_holds_are_counted(tmp_path: Path) -> None:
    blobs = SourceBlobs(tmp_path)
    with blobs.holding() as one:
        name = one.put(b"same")
        with blobs.holding() as other:
            other.put(b"same")
        assert blobs.sweep(frozenset()) == 0
    # A thread that goes on after its caller is gone holds nothing for ever.
    one.put(b"same")
    assert blobs.names() == {name}
    assert blobs.sweep(frozenset()) == 1


def test_a_damaged_file_is_put_right(tmp_path: Path) -> None:
    blobs = SourceBlobs(tmp_path)
    with blobs.holding() as hold:
        name = hold.put(b"as it was")
        path = tmp_path / name[:2] / name
        written = path.stat().st_mtime_ns, path.stat().st_ino
        hold.put(b"as it was")
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == written
        for damage in (b"as it is!", b"", b"longer than it was"):
            path.write_bytes(damage)
            assert hold.put(b"as it was") == name
            assert blobs.get(name) == b"as it was"
