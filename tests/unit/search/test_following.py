"""Collections of whose vectors a version changes none: bound to it as they are, in the flip."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from support.local_store import LocalStore
from support.search import (
    World,
    item_vector,
    picture,
    search_world,
    text_point,
    text_query,
    text_vectors,
)

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import FailedPrecondition
from hotclip_server.search import records
from hotclip_server.search.records import CollectionRecord
from hotclip_server.search.searcher import Found, SearchOptions
from hotclip_server.testing import FakeLoader

TEXT = text_query("a query")


@asynccontextmanager
async def local_world(folder: Path, loader: FakeLoader | None = None) -> AsyncIterator[World]:
    async with search_world(folder, loader, store=LocalStore(folder / "vectors")) as world:
        yield world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with local_world(tmp_path) as world:
        yield world


async def store_pictures(world: World, name: str, numbers: Sequence[int] = range(9)) -> None:
    points = [search_pb2.Point(id=f"p{n}", item=picture(n)) for n in numbers]
    assert not (await world.collections.writer.upsert(name, points)).errors


def record_of(world: World, name: str) -> CollectionRecord:
    return world.collections.catalogue.get(name)


async def stored_record(world: World, name: str) -> CollectionRecord:
    return await world.database.run(lambda c: records.read(c, name))


async def search(world: World, name: str, *queries: search_pb2.Query, space: str = "") -> Found:
    options = SearchOptions(limit=1000, exact=True, expected_space_id=space)
    return await world.collections.searcher.search(name, queries or [TEXT], options)


def check(world: World, found: Found, items: dict[str, EncodeItem]) -> None:
    """The answer to TEXT is exact for the version that it names."""
    encoder = world.loader.encoders[found.version]
    assert found.space_id == encoder.spec.space_id
    query = item_vector(encoder, TEXT.item)
    scores = {name: float(item_vector(encoder, item) @ query) for name, item in items.items()}
    assert {m.id: m.score for m in found.matches[0]} == pytest.approx(scores, abs=1e-5)


PICTURES = {f"p{n}": picture(n) for n in range(9)}


async def test_pictures_follow_a_version_with_their_tower_and_back(world: World) -> None:
    one = world.live
    create = world.collections.catalogue.create
    await create("pictures", keep_sources=False)
    await create("mixed")
    await create("texts")
    await create("empty")
    await store_pictures(world, "pictures")
    await store_pictures(world, "mixed")
    await world.collections.writer.upsert("mixed", [text_point("t", "text")])
    await world.collections.writer.upsert("texts", [text_point("t", "text")])
    shard, batches = record_of(world, "pictures").shard, world.loader.encoders[one].batches
    locked = await world.load("tuned@one")
    tuned = world.loader.encoders[locked]
    assert tuned.spec.vision_encoder_id == world.loader.encoders[one].spec.vision_encoder_id
    seen = [len(batches), len(tuned.batches)]

    async def bound() -> list[str]:
        names = ("pictures", "mixed", "texts", "empty")
        for name in names:
            assert record_of(world, name) == await stored_record(world, name)
        return [record_of(world, name).version for name in names]

    check(world, await search(world, "pictures"), PICTURES)
    await world.registry.activate("default", locked, validate_only=True)
    assert await bound() == [one] * 4
    await world.registry.activate("default", locked, collections=["pictures"])
    assert await bound() == [locked, one, one, locked]
    assert record_of(world, "pictures").shard == shard
    assert record_of(world, "pictures").space_id == tuned.spec.space_id
    # Queries are encoded by the new clip-text, and no picture was encoded again.
    found = await search(world, "pictures")
    assert found.version == locked
    check(world, found, PICTURES)
    both = [*batches[seen[0] :], *tuned.batches[seen[1] :]]
    assert {tower for tower, _ in both} == {Tower.TEXT}
    # Nobody holds the old version for it any more.
    await world.collections.catalogue.delete("mixed")
    await world.collections.catalogue.delete("texts")
    holders = {r.version_id: r.holders for r, _ in world.registry}
    assert holders[one] == set()
    assert holders[locked] == {"collection:pictures", "collection:empty"}

    await world.registry.rollback("default")
    assert record_of(world, "pictures").version == one
    check(world, await search(world, "pictures"), PICTURES)
    await world.registry.rollback("default")
    # Points of a kind that it did not hold are of the bound version, and keep it there.
    await world.collections.writer.upsert("pictures", [text_point("t", "text")])
    await world.registry.rollback("default")
    assert world.live == one
    assert record_of(world, "pictures").version == locked
    check(world, await search(world, "pictures"), PICTURES | {"t": EncodeItem(text="text")})


async def test_another_tower_leaves_them_behind_until_they_catch_up(world: World) -> None:
    one = world.live
    await world.collections.catalogue.create("c", keep_sources=False)
    await store_pictures(world, "c")
    other, locked = await world.load("two"), await world.load("tuned@one")
    with pytest.raises(FailedPrecondition) as veto:
        await world.registry.activate("default", other, collections=["c"])
    assert veto.value.reason == "SHADOW_INCOMPLETE"
    await world.registry.activate("default", other)
    assert record_of(world, "c").version == one
    # It was left behind: activating another version does not take it along.
    await world.registry.activate("default", locked)
    assert record_of(world, "c").version == one
    encoded = list(world.loader.encoders[locked].batches)
    job = await world.reindex("c", locked)
    async for _ in world.jobs.watch(job):
        pass
    assert (await world.jobs.get(job)).error is None
    assert record_of(world, "c").version == locked
    assert world.loader.encoders[locked].batches == encoded
    check(world, await search(world, "c"), PICTURES)


async def test_reindexing_what_follows_touches_nothing(world: World) -> None:
    one = world.live
    await world.collections.catalogue.create("c", keep_sources=False)
    await store_pictures(world, "c")
    before = record_of(world, "c")
    locked = await world.load("tuned@one")
    encoded = list(world.loader.encoders[locked].batches)
    job = await world.reindex("c", locked)
    events = [event async for event in world.jobs.watch(job)]
    assert "as it is" in events[-1].state.message
    assert world.loader.encoders[locked].batches == encoded
    after = record_of(world, "c")
    assert (after.version, after.shadow_version, after.shard) == (one, None, before.shard)
    assert await world.store.shards() == [before.shard]
    await world.registry.activate("default", locked, collections=["c"])
    assert record_of(world, "c").version == locked


async def test_vectors_of_callers_follow_only_within_their_space(world: World) -> None:
    record = await world.collections.catalogue.create("c")
    vector = search_pb2.Vector(data=np.ones(32, "<f4").tobytes(), space_id=record.space_id)
    await world.collections.writer.upsert("c", [search_pb2.Point(id="v", vector=vector)])
    locked = await world.load("tuned@one")
    with pytest.raises(FailedPrecondition) as refused:
        await world.collections.reindexer.check("c", locked)
    assert refused.value.metadata == {"points": "1", "ids": '["v"]'}
    await world.registry.activate("default", locked)
    assert record_of(world, "c").version == record.version
    # Upserted as an image it can be reindexed, and then it follows like any other.
    await world.collections.writer.upsert("c", [search_pb2.Point(id="v", item=picture(0))])
    assert record_of(world, "c").has_vectors
    job = await world.reindex("c", locked)
    async for _ in world.jobs.watch(job):
        pass
    assert record_of(world, "c").version == locked
    assert record_of(world, "c").sides == (False, True, False)
    await world.registry.activate("default", await world.load("again@one"))
    assert record_of(world, "c").version == world.live


class GatedAudience:
    """Front ends that take their time to hold their calls."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def told(self) -> None:
        return

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        await self.gate.wait()
        yield


async def test_a_text_that_comes_between_the_commit_and_the_flip(world: World) -> None:
    one = world.live
    await world.collections.catalogue.create("c", keep_sources=False)
    await store_pictures(world, "c")
    locked = await world.load("tuned@one")
    audience = GatedAudience()
    world.registry.set_audience(audience)
    flip = asyncio.create_task(world.registry.activate("default", locked))
    async with asyncio.timeout(10):
        while (await stored_record(world, "c")).version != locked:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.005)
    # Committed, not yet to be seen.
    # More pictures are the same by both towers, and wait for nobody.
    await store_pictures(world, "c", range(9))
    write = asyncio.create_task(
        world.collections.writer.upsert("c", [text_point("t", "text", text="text")])
    )
    new = asyncio.create_task(world.collections.catalogue.create("new"))
    change = asyncio.create_task(world.collections.catalogue.change("c", lambda _, record: record))
    await asyncio.sleep(0.1)
    assert (await search(world, "c")).version == one
    check(world, await search(world, "c"), PICTURES)
    assert not any(task.done() for task in (write, new, change))
    audience.gate.set()
    await flip
    assert (await write).version == locked
    assert (await new).version == locked
    assert (await change).version == locked
    assert record_of(world, "c") == await stored_record(world, "c")
    found = await search(world, "c")
    assert found.version == locked
    check(world, found, PICTURES | {"t": EncodeItem(text="text")})


async def test_a_search_that_a_flip_and_a_new_kind_overtake_is_done_again(world: World) -> None:
    store = world.store
    assert isinstance(store, LocalStore)
    await world.collections.catalogue.create("c")
    await store_pictures(world, "c")
    locked = await world.load("tuned@one")
    store.gates["search"] = asyncio.Event()
    searching = asyncio.create_task(search(world, "c"))
    async with asyncio.timeout(10):
        while "search" not in store.waiting:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.005)
    # The query was encoded by the old version.
    await world.registry.activate("default", locked)
    await world.collections.writer.upsert("c", [text_point("t", "text")])
    store.gates["search"].set()
    found = await searching
    assert found.version == locked
    check(world, found, PICTURES | {"t": EncodeItem(text="text")})


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("seed", ["two", "tuned@one"])
async def test_a_crash_in_a_flip_leaves_version_and_collection_together(
    tmp_path: Path, back: bool, committed: bool, seed: str
) -> None:
    loader = FakeLoader()
    async with local_world(tmp_path, loader) as world:
        versions = [world.live, await world.load(seed)]
        await world.collections.catalogue.create("c")
        await store_pictures(world, "c")
        if seed == "two":
            await reindexed(world, versions[1])
        if back:
            await world.registry.activate("default", versions[1])
            versions.reverse()
        catalog = world.registry._catalog
        row = catalog.model("default")
        new = row.changed(live=versions[1], previous=versions[0])
        participants = (world.collections.catalogue,)
        # The process dies right after this, and nothing in it was told.
        await catalog.write_flip(row, new, participants, (), trial=not committed)
        assert record_of(world, "c").version == versions[0]
    async with local_world(tmp_path, loader) as world:
        expected = versions[committed]
        assert (world.live, record_of(world, "c").version) == (expected, expected)
        check(world, await search(world, "c"), PICTURES)


async def reindexed(world: World, version: str) -> None:
    job = await world.reindex("c", version)
    async for _ in world.jobs.watch(job):
        pass
    assert (await world.jobs.get(job)).error is None


async def test_a_space_is_answered_by_who_keeps_its_vectors(world: World) -> None:
    one = world.live
    old = world.loader.encoders[one].spec.space_id
    await world.collections.catalogue.create("c")
    await store_pictures(world, "c")
    await world.collections.writer.upsert("c", [text_point("t", "text")])
    items = PICTURES | {"t": EncodeItem(text="text")}
    two = await world.load("two")
    new = world.loader.encoders[two].spec.space_id

    async def refused(space: str) -> None:
        with pytest.raises(FailedPrecondition) as error:
            await search(world, "c", space=space)
        assert error.value.reason == "SPACE_MISMATCH"
        assert error.value.metadata["expected_space_id"] == space
        vector = search_pb2.Vector(data=np.ones(32, "<f4").tobytes(), space_id=space)
        with pytest.raises(FailedPrecondition) as error:
            await search(world, "c", search_pb2.Query(vector=vector))
        assert error.value.reason == "SPACE_MISMATCH"

    async def served(space: str, version: str) -> None:
        found = await search(world, "c", space=space)
        assert found.version == version
        check(world, found, items)
        own = text_vectors(world.loader.encoders[version], [TEXT.item.text])[0]
        vector = search_pb2.Vector(data=own.astype("<f4").tobytes(), space_id=space)
        found = await search(world, "c", search_pb2.Query(vector=vector))
        assert found.version == version
        check(world, found, items)

    await refused(new)  # It is resident, but there are no vectors of it.
    job = await world.reindex("c", two)
    async for _ in world.jobs.watch(job):
        pass
    await served(new, two)
    await served(old, one)
    await world.registry.activate("default", two)
    await served(old, one)
    await served(new, two)
    # What is written now is found in both.
    items["later"] = EncodeItem(text="later")
    await world.collections.writer.upsert("c", [text_point("later", "later")])
    await served(old, one)
    mixed = [
        search_pb2.Query(vector=search_pb2.Vector(data=np.ones(32, "<f4").tobytes(), space_id=s))
        for s in (old, new)
    ]
    with pytest.raises(FailedPrecondition):
        await search(world, "c", *mixed)
    await world.registry.unload(one)
    await refused(old)
    await served(new, two)


async def test_a_space_of_a_version_with_the_same_tower_is_answered_from_the_same_vectors(
    world: World,
) -> None:
    one = world.live
    old = world.loader.encoders[one].spec.space_id
    await world.collections.catalogue.create("c", keep_sources=False)
    await store_pictures(world, "c")
    await world.registry.activate("default", await world.load("tuned@one"))
    found = await search(world, "c", space=old)
    assert found.version == one
    check(world, found, PICTURES)
    await world.collections.writer.upsert("c", [text_point("t", "text")])
    with pytest.raises(FailedPrecondition):
        await search(world, "c", space=old)


async def test_collections_of_another_model_stay(world: World) -> None:
    other = (await world.registry.load_version("other", "fake:first")).id
    await world.registry.activate("other", other)
    assert (await world.collections.catalogue.create("c", model="other")).version == other
    await store_pictures(world, "c")
    await world.registry.activate("default", await world.load("tuned@one"))
    assert record_of(world, "c").version == other
    locked = (await world.registry.load_version("other", "fake:second@first")).id
    await world.registry.activate("other", locked)
    assert record_of(world, "c").version == locked
