"""Reindex, flip and rollback under load: no answer mixes two versions, no write is lost."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from support.search import World, search_world, text_point, text_query, text_vectors

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.errors import FailedPrecondition
from hotclip_server.jobs.records import JobRecord
from hotclip_server.jobs.states import JobState
from hotclip_server.search.searcher import SearchOptions
from hotclip_server.testing import FakeEncoder, FakeLoader

QUERIES = [text_query(f"query {i}") for i in range(4)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with search_world(tmp_path) as world:
        yield world


async def ended(world: World, job: str) -> JobRecord:
    async with asyncio.timeout(60):
        async for _ in world.jobs.watch(job):
            pass
    return await world.jobs.get(job)


async def until_progress(world: World, job: str, least: float) -> None:
    async with asyncio.timeout(30):
        while (await world.jobs.get(job)).progress < least:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.02)


async def checked_search(world: World) -> tuple[str, int]:
    """One search whose every score is computed again with the version that it names."""
    found = await world.collections.searcher.search("c", QUERIES, SearchOptions(limit=20))
    encoder = world.loader.encoders[found.version]
    assert encoder.spec.space_id == found.space_id
    for query, matches in zip(QUERIES, found.matches, strict=True):
        texts = [match.payload["text"] for match in matches]
        scores = text_vectors(encoder, texts) @ text_vectors(encoder, [query.item.text])[0]
        np.testing.assert_allclose([m.score for m in matches], scores, atol=1e-5)
    return found.version, len(found.matches[0])


async def check_content(world: World, expected: dict[str, str]) -> None:
    """The collection holds exactly these texts, and search is as exact as numpy."""
    record = world.collections.catalogue.get("c")
    found = await world.collections.searcher.search(
        "c", QUERIES, SearchOptions(limit=1000, exact=True)
    )
    encoder = world.loader.encoders[record.version]
    assert found.version == record.version
    ids, texts = list(expected), list(expected.values())
    vectors = text_vectors(encoder, texts)
    for query, matches in zip(QUERIES, found.matches, strict=True):
        assert {m.id: m.payload["text"] for m in matches} == expected
        scores = vectors @ text_vectors(encoder, [query.item.text])[0]
        np.testing.assert_allclose([m.score for m in matches], np.sort(scores)[::-1], atol=1e-5)
        assert matches[0].id == ids[int(np.argmax(scores))]


class Load:
    """Writes, deletes and searches for as long as it is told; knows what must be stored."""

    def __init__(self, world: World, expected: dict[str, str]) -> None:
        self.expected = expected
        self.versions: list[str] = []
        self._world = world
        self._stopping = asyncio.Event()

    async def write(self) -> None:
        upsert, delete = (
            self._world.collections.writer.upsert,
            self._world.collections.writer.delete,
        )
        for turn in itertools.count():
            if self._stopping.is_set():
                return
            changes = {f"p{turn * 7 % 300}": f"changed {turn}", f"new {turn % 50}": f"new {turn}"}
            done = await upsert("c", [text_point(i, t, text=t) for i, t in changes.items()])
            assert not done.errors
            self.expected.update(changes)
            gone = f"p{turn * 11 % 300}"
            await delete("c", [gone])
            self.expected.pop(gone, None)

    async def search(self) -> None:
        while not self._stopping.is_set():
            version, hits = await checked_search(self._world)
            assert hits == 20
            self.versions.append(version)

    def stop(self) -> None:
        self._stopping.set()


async def test_reindex_flip_and_rollback_under_load(world: World) -> None:
    one = world.live
    await world.collections.catalogue.create("c")
    expected = {f"p{i}": f"text {i}" for i in range(600)}
    points = [text_point(i, t, text=t) for i, t in expected.items()]
    await world.collections.writer.upsert("c", points)
    two = await world.load("two")
    load = Load(world, expected)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.write())
        group.create_task(load.search())
        group.create_task(load.search())
        await asyncio.sleep(0.2)
        job = await ended(world, await world.reindex("c", two))
        assert (job.state, job.progress) == (JobState.SUCCEEDED, 1.0)
        record = world.collections.catalogue.get("c")
        assert (record.version, record.shadow_version, record.shadow_complete) == (one, two, True)
        await asyncio.sleep(0.2)
        await world.registry.activate("default", two, collections=["c"])
        # Requests admitted after the activation are of the new version.
        assert (await checked_search(world))[0] == two
        await asyncio.sleep(0.4)
        await world.registry.rollback("default")
        assert (await checked_search(world))[0] == one
        await asyncio.sleep(0.3)
        await world.registry.rollback("default")
        await asyncio.sleep(0.2)
        load.stop()
    assert set(load.versions) == {one, two}
    # No write of before, between or after is missing on either side.
    await check_content(world, load.expected)
    await world.registry.rollback("default")
    assert world.collections.catalogue.get("c").version == one
    await check_content(world, load.expected)


async def test_writes_go_on_while_shards_come_and_go(world: World) -> None:
    await world.collections.catalogue.create("c")
    expected = {f"p{i}": f"text {i}" for i in range(100)}
    points = [text_point(i, t, text=t) for i, t in expected.items()]
    await world.collections.writer.upsert("c", points)
    load = Load(world, expected)
    versions = [await world.load(seed) for seed in ("two", "three", "four")]
    async with asyncio.TaskGroup() as group:
        group.create_task(load.write())
        group.create_task(load.search())
        for version in versions:
            assert (await ended(world, await world.reindex("c", version))).error is None
            await world.registry.activate("default", version, collections=["c"])
            # The vector process dies as well; nobody notices.
            killed = world.store.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            # A call outlives two deaths of the process, not three.
            while world.store.pid in (killed, None):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await world.store.shards()
        load.stop()
    assert world.collections.catalogue.get("c").version == versions[-1]
    await check_content(world, load.expected)
    assert len(await world.store.shards()) == 2


async def test_a_named_incomplete_shadow_vetoes(world: World) -> None:
    one = world.live
    await world.collections.catalogue.create("c")
    await world.collections.writer.upsert("c", [text_point("1", "one", text="one")])
    two = await world.load("two")
    with pytest.raises(FailedPrecondition) as veto:
        await world.registry.activate("default", two, collections=["c"])
    assert veto.value.reason == "SHADOW_INCOMPLETE"
    assert world.live == one
    # Unnamed, it stays with the version that it is bound to, which stays resident.
    await world.registry.activate("default", two)
    assert world.collections.catalogue.get("c").version == one
    await world.registry.activate("default", await world.load("three"))
    assert (await checked_search(world))[0] == one


async def test_a_shadow_for_the_live_version_goes_live_when_complete(world: World) -> None:
    await world.collections.catalogue.create("c")
    await world.collections.writer.upsert("c", [text_point("1", "one", text="one")])
    one, two = world.live, await world.load("two")
    await world.registry.activate("default", two)
    assert (await ended(world, await world.reindex("c", two))).state is JobState.SUCCEEDED
    record = world.collections.catalogue.get("c")
    assert (record.version, record.previous_version, record.shadow_version) == (two, one, None)
    await world.registry.rollback("default")
    assert world.collections.catalogue.get("c").version == one


async def test_the_old_shard_goes_with_the_rollback_target(world: World) -> None:
    await world.collections.catalogue.create("c")
    await world.collections.writer.upsert("c", [text_point("1", "one", text="one")])
    two = await world.load("two")
    await ended(world, await world.reindex("c", two))
    await world.registry.activate("default", two)
    assert len(await world.store.shards()) == 2
    await world.registry.activate("default", await world.load("three"))
    async with asyncio.timeout(10):
        while len(await world.store.shards()) != 1:  # noqa: ASYNC110 - dropped in the background
            await asyncio.sleep(0.01)
    assert world.collections.catalogue.get("c").previous_version is None
    assert (await checked_search(world))[0] == two


async def test_an_unloaded_rollback_target_gets_no_more_writes(world: World) -> None:
    await world.collections.catalogue.create("c")
    await world.collections.writer.upsert("c", [text_point("1", "one", text="one")])
    one, two = world.live, await world.load("two")
    await ended(world, await world.reindex("c", two))
    await world.registry.activate("default", two)
    vector = search_pb2.Vector(
        data=np.ones(32, "<f4").tobytes(),
        space_id=world.collections.catalogue.get("c").space_id,
    )
    given = search_pb2.Point(id="given", vector=vector)
    given.payload.update({"text": "given"})
    refused = await world.collections.writer.upsert("c", [given])
    assert refused.errors[0].reason == "SOURCE_NEEDED"
    await world.registry.unload(one)
    await world.collections.writer.upsert("c", [text_point("2", "two", text="two")])
    assert world.collections.catalogue.get("c").previous_version is None
    assert (await world.collections.writer.upsert("c", [given])).errors == {}
    assert await world.collections.count("c") == 3


async def test_an_interrupted_reindex_goes_on(tmp_path: Path) -> None:
    loader = FakeLoader()
    async with search_world(tmp_path, loader) as world:
        await world.collections.catalogue.create("c")
        points = [text_point(f"p{i}", f"text {i}", text=f"text {i}") for i in range(1000)]
        await world.collections.writer.upsert("c", points)
        two = await world.load("two")
        loader.encoders[two].faults.delay_s = 0.05
        job = await world.reindex("c", two)
        await until_progress(world, job, 0.1)
    async with search_world(tmp_path, loader) as world:
        assert (await world.jobs.get(job)).state is JobState.INTERRUPTED
        record = world.collections.catalogue.get("c")
        assert (record.shadow_version, record.shadow_complete) == (two, False)
        assert 0 < (await world.store.info(record.shadow_shard or "")).points < 1000
        await world.collections.writer.upsert("c", [text_point("p3", "x", text="x")])
        await world.jobs.resume(job)
        assert (await ended(world, job)).state is JobState.SUCCEEDED
        await world.registry.activate("default", two, collections=["c"])
        expected = {f"p{i}": f"text {i}" for i in range(1000)} | {"p3": "x"}
        await check_content(world, expected)


async def test_a_cancelled_reindex_leaves_no_shadow(world: World) -> None:
    await world.collections.catalogue.create("c")
    points = [text_point(f"p{i}", f"text {i}", text=f"text {i}") for i in range(500)]
    await world.collections.writer.upsert("c", points)
    two = await world.load("two")
    world.loader.encoders[two].faults.delay_s = 0.1
    job = await world.reindex("c", two)
    await until_progress(world, job, 0.01)
    await world.jobs.cancel(job)
    assert (await ended(world, job)).state is JobState.CANCELLED
    assert world.collections.catalogue.get("c").shadow_version is None


async def test_a_failed_reindex_leaves_no_shadow(world: World) -> None:
    await world.collections.catalogue.create("c")
    await world.collections.writer.upsert("c", [text_point("p", "text", text="text")])
    two = await world.load("two")
    world.loader.encoders[two].faults.fails = lambda _: True
    job = await world.reindex("c", two)
    assert (await ended(world, job)).state is JobState.FAILED
    assert world.collections.catalogue.get("c").shadow_version is None
    await world.registry.unload(two)


async def test_a_shadow_that_no_job_completes_ends_with_the_server(tmp_path: Path) -> None:
    loader = FakeLoader()
    async with search_world(tmp_path, loader) as world:
        await world.collections.catalogue.create("c")
        points = [text_point(f"p{i}", f"text {i}", text=f"text {i}") for i in range(500)]
        await world.collections.writer.upsert("c", points)
        two = await world.load("two")
        loader.encoders[two].faults.delay_s = 0.1
        job = await world.reindex("c", two)
        await until_progress(world, job, 0.01)
    async with search_world(tmp_path, loader) as world:
        assert world.collections.catalogue.get("c").shadow_version == two
        await world.jobs.delete(job)
    async with search_world(tmp_path, loader) as world:
        assert world.collections.catalogue.get("c").shadow_version is None
        assert len(await world.store.shards()) == 1


async def test_rows_are_encoded_in_no_larger_lists_than_the_limit(tmp_path: Path) -> None:
    async with search_world(tmp_path, max_items=10) as world:
        await world.collections.catalogue.create("c")
        for i in range(3):
            some = [text_point(f"p{i}{k}", f"{i} {k}", text=f"{i} {k}") for k in range(10)]
            await world.collections.writer.upsert("c", some)
        job = await world.reindex("c", await world.load("two"))
        assert (await ended(world, job)).state is JobState.SUCCEEDED


async def test_vectors_of_an_unchanged_tower_are_copied(world: World) -> None:
    await world.collections.catalogue.create("c")
    pictures = [EncodeItem(image=b"\x89PNG" + bytes([i])) for i in range(40)]
    await world.collections.writer.upsert(
        "c", [search_pb2.Point(id=f"i{i}", item=item) for i, item in enumerate(pictures)]
    )
    await world.collections.writer.upsert("c", [text_point("t", "text")])
    old = world.loader.encoders[world.live]
    manifest = world.loader.import_source("fake:text-tuned")
    world.loader.encoders[manifest.id] = LockedVision(old, "fake:text-tuned")
    two = await world.load("text-tuned")
    new = world.loader.encoders[two]
    before = len([tower for tower, _ in new.batches if tower.name == "VISION"])
    assert (await ended(world, await world.reindex("c", two))).state is JobState.SUCCEEDED
    assert len([tower for tower, _ in new.batches if tower.name == "VISION"]) == before
    await world.registry.activate("default", two, collections=["c"])
    query = search_pb2.Query(item=pictures[7])
    found = await world.collections.searcher.search("c", [query], SearchOptions(limit=1))
    assert (found.matches[0][0].id, found.version) == ("i7", two)


class LockedVision(FakeEncoder):
    """A version whose vision tower is that of another."""

    def __init__(self, old: FakeEncoder, seed: str) -> None:
        super().__init__(seed)
        self._old = old
        self._spec = type(self._spec)(
            **{
                **{name: getattr(self._spec, name) for name in self._spec.__dataclass_fields__},
                "vision_encoder_id": old.spec.vision_encoder_id,
            }
        )

    def vector(self, item):  # type: ignore[no-untyped-def]  # as in FakeEncoder
        return self._old.vector(item) if item.tower.name == "VISION" else super().vector(item)
