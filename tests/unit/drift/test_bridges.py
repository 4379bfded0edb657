"""Which collections a stored bridge serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.local_store import LocalStore
from support.search import World, picture, search_world, text_point, text_query

from hotclip_proto.v1 import drift_pb2, search_pb2
from hotclip_server.drift import bridges
from hotclip_server.drift.bridge import LinearMap
from hotclip_server.drift.bridged import BridgedSearcher
from hotclip_server.drift.bridges import Bridges, StoredBridge
from hotclip_server.errors import FailedPrecondition
from hotclip_server.search.searcher import SearchOptions


async def store_bridge(world: World, collection: str, version: str) -> StoredBridge:
    record = world.collections.catalogue.get(collection)
    facts = drift_pb2.Bridge(
        collection=collection, bound_version=record.version, version=version, method="ridge"
    )
    map_ = LinearMap(np.eye(record.dim, dtype=np.float32), facts.method, facts.penalty)
    bridge = StoredBridge(facts=facts, shard=record.shard, map=map_, bound=record.binding)
    await world.database.run(lambda c: bridges.put(c, bridge))
    return bridge


async def test_points_of_a_version_that_was_followed_are_not_mapped(tmp_path: Path) -> None:
    async with search_world(tmp_path, store=LocalStore(tmp_path / "vectors")) as world:
        catalogue, writer = world.collections.catalogue, world.collections.writer
        await catalogue.create("c")
        await writer.upsert("c", [search_pb2.Point(id=f"p{n}", item=picture(n)) for n in range(3)])
        two = await world.load("two")
        locked = await world.load("tuned@one")
        stored = await store_bridge(world, "c", two)
        known = Bridges(world.database, catalogue)
        searcher = BridgedSearcher(
            world.store, world.registry, catalogue, world.collections.searcher, known
        )

        async def search() -> str:
            found = await searcher.search("c", [text_query("q")], SearchOptions())
            return found.version

        await world.registry.activate("default", locked)
        await world.registry.bind(two, "test")
        followed = catalogue.get("c")
        assert (followed.version, followed.shard) == (locked, stored.shard)
        # Its pictures are what they were.
        assert (await known.get("c"))[1]
        assert await search() == two

        await writer.upsert("c", [text_point("t", "a text of the tuned version")])
        for bridged in (known, Bridges(world.database, catalogue)):
            assert not (await bridged.get("c"))[1]
        with pytest.raises(FailedPrecondition) as outdated:
            await search()
        assert outdated.value.reason == "BRIDGE_OUTDATED"
        with pytest.raises(FailedPrecondition):
            await world.database.run(lambda c: bridges.put(c, stored))
