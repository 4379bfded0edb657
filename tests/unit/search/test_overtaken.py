"""Reads that flips and writes overtake: every vector is labelled with the space that it is of, and
nothing is read again without need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.local_store import LateStore
from support.search import World, item_vector, search_world, text_point

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.search.reader import Fields, ReadPoints
from tests.unit.search.test_following import (
    PICTURES,
    check,
    record_of,
    reindexed,
    search,
    store_pictures,
)

VECTORS = Fields(vectors=True)


@pytest.fixture
def store(tmp_path: Path) -> LateStore:
    return LateStore(tmp_path / "vectors")


@pytest.fixture
async def world(tmp_path: Path, store: LateStore) -> AsyncIterator[World]:
    """With a collection "c" of pictures."""
    async with search_world(tmp_path, store=store) as world:
        await world.collections.catalogue.create("c")
        await store_pictures(world, "c")
        yield world


async def take_back_text(world: World) -> None:
    """As a write is taken back that the disk has no room for."""
    await world.collections.writer.delete("c", ["t"])
    await world.collections.catalogue.change(
        "c", lambda _, record: record.with_sides((False, True, False))
    )


async def note_progress(world: World) -> None:
    """As a reindex does."""
    await world.collections.catalogue.change(
        "c", lambda _, record: replace(record, shadow_revision=record.shadow_revision + 1)
    )


async def test_a_new_kind_that_is_taken_back(world: World, store: LateStore) -> None:
    # It has the pictures' tower, but another one for texts.
    locked = await world.load("tuned@one")
    space = world.loader.encoders[locked].spec.space_id
    store.hold("search")
    searching = asyncio.create_task(search(world, "c", space=space))
    await store.held("search")
    await world.collections.writer.upsert("c", [text_point("t", "text")])
    await store.do("search")
    await take_back_text(world)
    store.late["search"].set()
    found = await searching
    assert found.version == locked
    check(world, found, PICTURES)


async def test_a_version_that_is_followed_and_left_again(world: World, store: LateStore) -> None:
    one, locked = world.live, await world.load("tuned@one")
    store.hold("search")
    searching = asyncio.create_task(search(world, "c"))
    await store.held("search")
    await world.registry.activate("default", locked)
    await world.collections.writer.upsert("c", [text_point("t", "text")])
    await store.do("search")
    await take_back_text(world)
    await world.registry.rollback("default")
    assert record_of(world, "c").version == one
    store.late["search"].set()
    found = await searching
    assert found.version == one
    check(world, found, PICTURES)


async def test_a_version_that_is_left_for_the_live_one_by_a_reindex(
    world: World, store: LateStore
) -> None:
    one, locked = world.live, await world.load("tuned@one")
    await world.registry.activate("default", await world.load("two"))
    await world.registry.activate("default", locked)
    assert record_of(world, "c").version == one
    store.hold("search")
    searching = asyncio.create_task(search(world, "c"))
    await store.held("search")
    await reindexed(world, locked)
    assert record_of(world, "c").version == locked
    await world.collections.writer.upsert("c", [text_point("t", "text")])
    await store.do("search")
    await take_back_text(world)
    await world.registry.activate("default", one)
    assert record_of(world, "c").version == one
    store.late["search"].set()
    found = await searching
    assert found.version == one
    check(world, found, PICTURES)


async def test_what_no_other_version_writes_to_is_searched_once(
    world: World, store: LateStore
) -> None:
    """However far a reindex comes meanwhile, and also if its shadow goes live."""
    one, two = world.live, await world.load("two")
    await world.collections.writer.upsert("c", [text_point("t", "text")])
    items = PICTURES | {"t": EncodeItem(text="text")}

    async def overtaken_by(flip: bool) -> None:
        store.hold("search")
        store.waiting.clear()
        searching = asyncio.create_task(search(world, "c"))
        await store.held("search")
        store.calls.clear()
        await store.do("search")
        if flip:
            await world.registry.activate("default", two)
            assert record_of(world, "c").version == two
        else:
            await note_progress(world)
        store.late["search"].set()
        found = await searching
        assert found.version == one
        check(world, found, items)
        assert "search" not in store.calls

    await overtaken_by(flip=False)
    await reindexed(world, two)
    await overtaken_by(flip=True)


async def get(world: World) -> ReadPoints:
    return await world.collections.reader.get("c", ["p0"], VECTORS)


async def page(world: World) -> ReadPoints:
    return await world.collections.reader.page(
        "c", after="", limit=9, payload_filter=None, fields=VECTORS
    )


@pytest.mark.parametrize("read", [get, page])
async def test_a_point_that_is_replaced_by_one_of_a_followed_version(
    world: World, store: LateStore, read: Callable[[World], Awaitable[ReadPoints]]
) -> None:
    one, locked = world.live, await world.load("tuned@one")
    store.hold("retrieve")
    reading = asyncio.create_task(read(world))
    await store.held("retrieve")
    await world.registry.activate("default", locked)
    await world.collections.writer.upsert("c", [text_point("p0", "text")])
    store.calls.clear()
    await store.do("retrieve")
    store.late["retrieve"].set()
    found = await reading
    assert found.record.version == locked != one
    encoder = world.loader.encoders[locked]
    (point,) = [point for point in found.points if point.id == "p0"]
    assert point.vector is not None
    np.testing.assert_allclose(
        point.vector, item_vector(encoder, EncodeItem(text="text")), atol=1e-5
    )
    assert "retrieve" in store.calls


async def test_reads_that_a_reindex_overtakes_are_done_once(world: World, store: LateStore) -> None:
    store.hold("retrieve")
    reading = asyncio.create_task(get(world))
    await store.held("retrieve")
    store.calls.clear()
    await store.do("retrieve")
    await note_progress(world)
    store.late["retrieve"].set()
    assert (await reading).record.version == world.live
    assert store.calls == []
