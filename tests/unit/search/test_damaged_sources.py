"""Sources that the disk does not give back: they hold up no other point."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from support.local_store import LocalStore
from support.reindexing import ended
from support.search import World, search_world, text_point

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.errors import DataLoss
from hotclip_server.search.reader import Fields
from hotclip_server.testing import FakeLoader

SOURCES = Fields(sources=True)


def large(number: int) -> EncodeItem:
    """A picture that lies in a file of its own."""
    return EncodeItem(image=b"\x89PNG" + number.to_bytes(4, "big") * (10 << 10))


def point(number: int) -> search_pb2.Point:
    return search_pb2.Point(id=f"p{number}", item=large(number))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with local_world(tmp_path) as world:
        await world.collections.catalogue.create("c")
        await upsert(world, range(6))
        yield world


def local_world(
    folder: Path, loader: FakeLoader | None = None
) -> AbstractAsyncContextManager[World]:
    return search_world(folder, loader, store=LocalStore(folder / "vectors"))


async def upsert(world: World, numbers: range) -> None:
    assert not (await world.collections.writer.upsert("c", [point(n) for n in numbers])).errors


async def stored(world: World) -> set[str]:
    shard = world.collections.catalogue.get("c").shard
    return set((await world.store.retrieve(shard, [f"p{n}" for n in range(9)])).revisions)


def files(folder: Path) -> dict[int, Path]:
    """The file of each picture."""
    by_content = {p.read_bytes(): p for p in (folder / "sources").glob("*/*") if p.is_file()}
    return {
        n: by_content[data]
        for n in range(9)
        if (data := large(n).SerializeToString()) in by_content
    }


def harm(folder: Path) -> None:
    """The file of p1 is damaged, that of p4 gone."""
    found = files(folder)
    found[1].write_bytes(b"x" * found[1].stat().st_size)
    found[4].unlink()


async def test_settling_passes_them_over(
    tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    harm(tmp_path)
    await world.store.delete(
        world.collections.catalogue.get("c").shard, [f"p{n}" for n in range(6)]
    )
    world.collections.catalogue.unsettled.add("c")
    with caplog.at_level(logging.ERROR):
        await world.collections.writer.upsert("c", [text_point("t", "text")])
    assert await stored(world) == {"p0", "p2", "p3", "p5"}
    for name, how in (("p1", "damaged"), ("p4", "missing")):
        assert any(name in line and how in line for line in caplog.text.splitlines())
    assert world.collections.catalogue.unsettled == set()
    # What is bad can be removed, and be stored anew.
    world.collections.catalogue.unsettled.add("c")
    await world.collections.writer.delete("c", ["p1"])
    await upsert(world, range(1, 2))
    await upsert(world, range(4, 5))
    assert await stored(world) == {f"p{n}" for n in range(6)}
    got = await world.collections.reader.get("c", ["p1", "p4"], SOURCES)
    assert [p.source for p in got.points] == [large(n).SerializeToString() for n in (1, 4)]


async def test_a_collection_starts_with_them(tmp_path: Path) -> None:
    loader = FakeLoader()
    async with local_world(tmp_path, loader) as world:
        await world.collections.catalogue.create("c")
        await upsert(world, range(6))
        await world.store.drop(world.collections.catalogue.get("c").shard)
    harm(tmp_path)
    async with local_world(tmp_path, loader) as world:
        assert world.collections.catalogue.unsettled == set()
        assert await stored(world) == {"p0", "p2", "p3", "p5"}
        await upsert(world, range(6, 8))
        assert await world.collections.writer.delete("c", ["p0"]) == 1


async def test_reindex_names_their_points(tmp_path: Path, world: World) -> None:
    harm(tmp_path)
    two = await world.load("two")
    error = (await ended(world, await world.reindex("c", two))).error
    assert error is not None
    assert error.reason == "SOURCE_DAMAGED"
    assert "'p1', 'p4'" in error.message
    assert "is damaged" in error.message
    await upsert(world, range(1, 2))
    await world.collections.writer.delete("c", ["p4"])
    assert (await ended(world, await world.reindex("c", two))).error is None
    assert world.collections.catalogue.get("c").shadow_complete


async def test_looking_points_up_names_them(tmp_path: Path, world: World) -> None:
    same = search_pb2.Point(id="same", item=large(1))
    await world.collections.writer.upsert("c", [same])
    harm(tmp_path)
    collections = world.collections
    with pytest.raises(DataLoss, match="'p1', 'same'") as damaged:
        async with collections.naming_damage("c"):
            await collections.reader.get("c", ["p0", "same", "p4"], SOURCES)
    assert damaged.value.reason == "SOURCE_DAMAGED"
    assert json.loads(damaged.value.metadata["ids"]) == ["p1", "same"]
    other = DataLoss("a shard", reason="SHARD_DAMAGED")
    with pytest.raises(DataLoss) as passed:
        async with collections.naming_damage("c"):
            raise other
    assert passed.value is other
    # Upserting one of them puts the file right for all.
    await upsert(world, range(1, 2))
    got = await collections.reader.get("c", ["same"], SOURCES)
    assert got.points[0].source == large(1).SerializeToString()
