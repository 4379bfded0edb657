"""Which collections a stored bridge serves, also while it is searched over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.local_store import LateStore
from support.search import World, picture, search_world, text_point, text_query

from hotclip_proto.v1 import drift_pb2, search_pb2
from hotclip_server.drift import bridges
from hotclip_server.drift.bridge import LinearMap
from hotclip_server.drift.bridged import BridgedSearcher
from hotclip_server.drift.bridges import Bridges, StoredBridge
from hotclip_server.errors import FailedPrecondition
from hotclip_server.search.searcher import Found, SearchOptions

PICTURES = {"p0", "p1", "p2"}


async def store_bridge(world: World, collection: str, version: str) -> StoredBridge:
    record = world.collections.catalogue.get(collection)
    facts = drift_pb2.Bridge(
        collection=collection, bound_version=record.version, version=version, method="ridge"
    )
    map_ = LinearMap(np.eye(record.dim, dtype=np.float32), facts.method, facts.penalty)
    bridge = StoredBridge(facts=facts, shard=record.shard, map=map_, bound=record.binding)
    await world.database.run(lambda c: bridges.put(c, bridge))
    return bridge


@dataclass(frozen=True, kw_only=True)
class Bridged:
    """A collection "c" of pictures, with a bridge to version `two`."""

    world: World
    store: LateStore
    searcher: BridgedSearcher
    known: Bridges
    stored: StoredBridge
    two: str
    locked: str
    """Has the tower of the pictures, and another one for texts."""

    async def search(self) -> Found:
        return await self.searcher.search("c", [text_query("q")], SearchOptions())

    async def write(self, point: search_pb2.Point) -> None:
        await self.world.collections.writer.upsert("c", [point])


@pytest.fixture
async def bridged(tmp_path: Path) -> AsyncIterator[Bridged]:
    store = LateStore(tmp_path / "vectors")
    async with search_world(tmp_path, store=store) as world:
        await world.collections.catalogue.create("c")
        points = [search_pb2.Point(id=f"p{n}", item=picture(n)) for n in range(3)]
        await world.collections.writer.upsert("c", points)
        two = await world.load("two")
        await world.registry.bind(two, "test")
        locked = await world.load("tuned@one")
        stored = await store_bridge(world, "c", two)
        known = Bridges(world.database, world.collections.catalogue)
        searcher = BridgedSearcher(
            store, world.registry, world.collections.catalogue, world.collections.searcher, known
        )
        yield Bridged(
            world=world,
            store=store,
            searcher=searcher,
            known=known,
            stored=stored,
            two=two,
            locked=locked,
        )


async def test_points_of_a_version_that_was_followed_are_not_mapped(bridged: Bridged) -> None:
    world, catalogue = bridged.world, bridged.world.collections.catalogue
    await world.registry.activate("default", bridged.locked)
    followed = catalogue.get("c")
    assert (followed.version, followed.shard) == (bridged.locked, bridged.stored.shard)
    # Its pictures are what they were.
    assert (await bridged.known.get("c"))[1]
    assert (await bridged.search()).version == bridged.two

    await bridged.write(text_point("t", "a text of the tuned version"))
    for known in (bridged.known, Bridges(world.database, catalogue)):
        assert not (await known.get("c"))[1]
    with pytest.raises(FailedPrecondition) as outdated:
        await bridged.search()
    assert outdated.value.reason == "BRIDGE_OUTDATED"
    with pytest.raises(FailedPrecondition):
        await world.database.run(lambda c: bridges.put(c, bridged.stored))


async def test_a_new_kind_that_is_taken_back_meanwhile_is_not_mapped(bridged: Bridged) -> None:
    world, store = bridged.world, bridged.store
    await world.registry.activate("default", bridged.locked)
    store.hold("search")
    store.hold("retrieve")
    searching = asyncio.create_task(bridged.search())
    await store.held("search")
    await bridged.write(text_point("t", "a text of the tuned version"))
    await store.do("search")
    store.late["search"].set()
    # It is found, and its vector is read to be mapped.
    await store.held("retrieve")
    await store.do("retrieve")
    await world.collections.writer.delete("c", ["t"])
    await world.collections.catalogue.change(
        "c", lambda _, record: record.with_sides((False, True, False))
    )
    store.late["retrieve"].set()
    found = await searching
    assert found.version == bridged.two
    assert {match.id for match in found.matches[0]} == PICTURES


async def test_a_new_kind_before_another_shard_goes_live_is_not_mapped(bridged: Bridged) -> None:
    world, store = bridged.world, bridged.store
    job = await world.reindex("c", bridged.two)
    async for _ in world.jobs.watch(job):
        pass
    store.hold("search")
    searching = asyncio.create_task(bridged.search())
    await store.held("search")
    await world.registry.activate("default", bridged.locked)
    await bridged.write(text_point("t", "a text of the tuned version"))
    await store.do("search")
    await world.registry.activate("default", bridged.two)
    assert world.collections.catalogue.get("c").shard != bridged.stored.shard
    store.late["search"].set()
    found = await searching
    # Exact by now: the text is of the version that answers.
    assert (found.version, found.bridge) == (bridged.two, None)
    assert {match.id for match in found.matches[0]} == PICTURES | {"t"}


async def test_a_shard_that_no_other_version_writes_to_is_searched_once(bridged: Bridged) -> None:
    world, store = bridged.world, bridged.store
    job = await world.reindex("c", bridged.two)
    async for _ in world.jobs.watch(job):
        pass
    store.hold("search")
    searching = asyncio.create_task(bridged.search())
    await store.held("search")
    store.calls.clear()
    await store.do("search")
    await world.registry.activate("default", bridged.two)
    store.late["search"].set()
    assert (await searching).bridge is not None
    assert "search" not in store.calls
