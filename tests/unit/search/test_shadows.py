"""Shadows, and jobs that build them, when something goes wrong around them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest
from support.search import World, search_world, text_point, text_query

from hotclip_server.errors import DataLoss, FailedPrecondition
from hotclip_server.jobs.states import JobState
from hotclip_server.search.records import CollectionRecord
from hotclip_server.search.searcher import SearchOptions
from hotclip_server.testing import FakeEncoder, FakeLoader

POINTS = 1000


async def filled(world: World, count: int = POINTS) -> None:
    await world.collections.catalogue.create("c")
    points = [text_point(f"{i}", f"text {i}") for i in range(count)]
    for start in range(0, count, 500):
        await world.collections.writer.upsert("c", points[start : start + 500])


async def growing(world: World) -> CollectionRecord:
    """The collection, as soon as its shadow has been begun."""
    async with asyncio.timeout(30):
        while not (record := world.collections.catalogue.get("c")).shadow_version:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.005)
    return record


async def ended(world: World, job: str) -> JobState:
    async for _ in world.jobs.watch(job):
        pass
    return (await world.jobs.get(job)).state


async def test_a_reindex_waits_while_the_vector_process_is_away(tmp_path: Path) -> None:
    async with search_world(tmp_path) as world:
        await filled(world)
        version = await world.load("two")
        world.loader.encoders[version].faults.delay_s = 0.02
        job = await world.reindex("c", version)
        await growing(world)
        assert world.store.pid is not None
        # Shorter than it takes to start another process.
        world.store._timeout_s = 0.2
        os.kill(world.store.pid, signal.SIGSTOP)
        await asyncio.sleep(1.5)
        assert (await world.jobs.get(job)).state is JobState.RUNNING
        world.store._timeout_s = 30.0
        assert await ended(world, job) is JobState.SUCCEEDED
        record = world.collections.catalogue.get("c")
        assert (record.shadow_version, record.shadow_complete) == (version, True)
        assert await world.store.count(record.shadow_shard) == POINTS
        # Once more is nothing to do, and harmless to cancel.
        again = await world.reindex("c", version)
        await world.jobs.cancel(again)
        await ended(world, again)
        assert world.collections.catalogue.get("c").shadow_complete


@pytest.mark.parametrize("end", ["cancel", "delete"])
async def test_a_job_that_nobody_goes_on_with_leaves_no_shadow(tmp_path: Path, end: str) -> None:
    loader = FakeLoader()
    async with search_world(tmp_path, loader) as world:
        await filled(world)
        version = await world.load("two")
        loader.encoders[version].faults.delay_s = 0.1
        job = await world.reindex("c", version)
        record = await growing(world)
    async with search_world(tmp_path, loader, run_jobs=False) as world:
        await world.jobs.recover()
        assert (await world.jobs.get(job)).state is JobState.INTERRUPTED
        assert world.collections.catalogue.get("c").shadow_shard == record.shadow_shard
        if end == "cancel":
            assert (await world.jobs.resume(job)).state is JobState.QUEUED
            assert (await world.jobs.cancel(job)).state is JobState.CANCELLED
        else:
            await world.jobs.delete(job)
        assert world.collections.catalogue.get("c").shadow_version is None


async def test_a_collection_that_goes_before_its_shadow_begins_holds_no_version(
    tmp_path: Path,
) -> None:
    class SlowLoader(FakeLoader):
        def load(self, version_id: str, *, device: str) -> FakeEncoder:
            begun.set()
            go_on.wait()
            return super().load(version_id, device=device)

    begun, go_on = threading.Event(), threading.Event()
    go_on.set()
    async with search_world(tmp_path, SlowLoader()) as world:
        await filled(world, 10)
        version = await world.load("two")
        await world.registry.unload(version)
        begun.clear()
        go_on.clear()
        job = await world.reindex("c", version)
        assert await asyncio.to_thread(begun.wait, 30)
        await world.collections.catalogue.delete("c")
        go_on.set()
        assert await ended(world, job) is JobState.FAILED
        await world.registry.delete(version)


async def test_a_lost_shadow_does_not_fail_writes(tmp_path: Path) -> None:
    loader = FakeLoader()
    async with search_world(tmp_path, loader) as world:
        await filled(world, 10)
        assert await ended(world, await world.reindex("c", await world.load("two"))) is (
            JobState.SUCCEEDED
        )
        await world.store.drop(world.collections.catalogue.get("c").shadow_shard)
    async with search_world(tmp_path, loader) as world:
        await world.collections.writer.upsert("c", [text_point("new", "new")])
        assert world.collections.catalogue.get("c").shadow_version is None
        assert await world.collections.count("c") == 11


async def test_the_server_starts_with_a_damaged_shard(tmp_path: Path) -> None:
    loader = FakeLoader()
    async with search_world(tmp_path, loader) as world:
        await filled(world, 10)
        await world.collections.catalogue.create("other")
        await world.collections.writer.upsert("other", [text_point("1", "one")])
        shard = world.collections.catalogue.get("c").shard
    for path in (tmp_path / "vectors" / shard).glob("gen-*/**/*.json"):
        path.write_bytes(b"{")
    async with search_world(tmp_path, loader) as world:
        search = world.collections.searcher.search
        found = await search("other", [text_query("one")], SearchOptions())
        assert [match.id for match in found.matches[0]] == ["1"]
        with pytest.raises(DataLoss) as damaged:
            await search("c", [text_query("text 1")], SearchOptions())
        assert damaged.value.reason == "SHARD_DAMAGED"
        # Without what is damaged it is made anew from the sources, by the next start.
        await world.store.drop(shard)
    async with search_world(tmp_path, loader) as world:
        assert await world.collections.count("c") == 10


async def test_a_revision_is_not_given_again(tmp_path: Path) -> None:
    """Else what was chosen before a point was removed would be taken for what replaced it."""
    loader = FakeLoader()
    async with search_world(tmp_path, loader) as world:
        await filled(world, 2)
        shard = world.collections.catalogue.get("c").shard
        before = (await world.store.retrieve(shard, ["1"])).revisions["1"]
        await world.collections.writer.delete("c", ["1"])
    async with search_world(tmp_path, loader) as world:
        await world.collections.writer.upsert("c", [text_point("1", "another")])
        after = (await world.store.retrieve(shard, ["1"])).revisions["1"]
        assert after > before + 1


@pytest.mark.parametrize("keep_sources", [True, False])
async def test_an_empty_collection_goes_over_to_other_dimensions(
    tmp_path: Path, keep_sources: bool
) -> None:
    """It holds nothing that would have to be encoded again, with or without sources."""
    loader = FakeLoader()
    version = loader.import_source("fake:small").id
    loader.encoders[version] = FakeEncoder("fake:small", dim=16)
    async with search_world(tmp_path, loader) as world:
        catalogue, upsert = world.collections.catalogue, world.collections.writer.upsert
        old = (await catalogue.create("c", keep_sources=keep_sources)).version
        await upsert("c", [text_point("gone", "gone")])
        await world.collections.writer.delete("c", ["gone"])
        assert await world.load("small") == version
        # Written while the shadow grows, by a job that then goes on.
        await world.collections.reindexer._begin("c", version)
        await upsert("c", [text_point("1", "one")])
        assert await ended(world, await world.reindex("c", version)) is JobState.SUCCEEDED
        await upsert("c", [text_point("2", "two")])
    async with search_world(tmp_path, loader) as world:
        catalogue, upsert = world.collections.catalogue, world.collections.writer.upsert
        await world.registry.activate("", version, collections=["c"])
        assert (catalogue.get("c").version, catalogue.get("c").dim) == (version, 16)
        await upsert("c", [text_point("3", "three")])
        assert await nearest_to(world, ["one", "two", "three"]) == ["1", "2", "3"]
        await world.registry.rollback("")
        assert (catalogue.get("c").version, catalogue.get("c").dim) == (old, 32)
        assert await nearest_to(world, ["one", "two", "three"]) == ["1", "2", "3"]


async def test_points_without_sources_stay_where_they_are(tmp_path: Path) -> None:
    async with search_world(tmp_path) as world:
        await world.collections.catalogue.create("c", keep_sources=False)
        await world.collections.writer.upsert("c", [text_point("1", "one")])
        with pytest.raises(FailedPrecondition, match="1 of 1 points"):
            await world.reindex("c", await world.load("two"))


async def test_a_lost_shadow_without_sources_does_not_fail_writes(tmp_path: Path) -> None:
    loader = FakeLoader()
    version = loader.import_source("fake:small").id
    loader.encoders[version] = FakeEncoder("fake:small", dim=16)
    async with search_world(tmp_path, loader) as world:
        await world.collections.catalogue.create("c", keep_sources=False)
        await world.load("small")
        assert await ended(world, await world.reindex("c", version)) is JobState.SUCCEEDED
        await world.store.drop(world.collections.catalogue.get("c").shadow_shard)
    async with search_world(tmp_path, loader) as world:
        await world.collections.writer.upsert("c", [text_point("1", "one")])
        assert world.collections.catalogue.get("c").shadow_version is None
        assert await nearest_to(world, ["one"]) == ["1"]


async def nearest_to(world: World, texts: list[str]) -> list[str]:
    """Ids of the first hits."""
    search = world.collections.searcher.search
    found = await search("c", [text_query(text) for text in texts], SearchOptions(exact=True))
    return [matches[0].id for matches in found.matches]
