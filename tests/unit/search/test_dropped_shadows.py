"""A shadow whose version is not to go live after all is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from support.local_store import LocalStore
from support.reindexing import check_content, ended
from support.search import World, search_world, text_point

from hotclip_proto.v1 import search_pb2
from hotclip_server.errors import FailedPrecondition, NotFound
from hotclip_server.jobs.states import JobState
from hotclip_server.testing import FakeLoader

TEXTS = {f"p{i}": f"text {i}" for i in range(9)}
MANY = {f"p{i}": f"text {i}" for i in range(600)}
"""More than a job encodes in a step."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with search_world(tmp_path, store=LocalStore(tmp_path / "vectors")) as world:
        await fill(world)
        yield world


async def fill(world: World) -> None:
    await world.collections.catalogue.create("c")
    await store(world, TEXTS)


async def store(world: World, texts: dict[str, str]) -> None:
    points = [text_point(i, text, text=text) for i, text in texts.items()]
    assert not (await world.collections.writer.upsert("c", points)).errors


def given(world: World) -> search_pb2.Point:
    record = world.collections.catalogue.get("c")
    data = np.ones(32, "<f4").tobytes()
    return search_pb2.Point(
        id="given", vector=search_pb2.Vector(data=data, space_id=record.space_id)
    )


async def test_a_complete_shadow_is_given_up(world: World) -> None:
    two = await world.load("two")
    await ended(world, await world.reindex("c", two))
    await world.load("three")  # Nothing but the shadow holds it.
    refused = (await world.collections.writer.upsert("c", [given(world)])).errors[0]
    assert (refused.reason, "DropShadow" in refused.message) == ("SOURCE_NEEDED", True)
    for end in (world.registry.unload, world.registry.delete):
        with pytest.raises(FailedPrecondition, match="DropShadow") as held:
            await end(two)
        assert held.value.reason == "VERSION_IN_USE"

    record = await world.collections.drop_shadow("c", two)
    assert (record.shadow_version, record.shadow_complete) == (None, False)
    assert record == world.collections.catalogue.get("c")
    await asyncio.gather(*world.collections.catalogue._tasks)
    assert await world.store.shards() == [record.shard]
    encoded = list(world.loader.encoders[two].batches)
    await store(world, {"new": "a new one"})
    assert world.loader.encoders[two].batches == encoded
    await check_content(world, TEXTS | {"new": "a new one"})
    assert not (await world.collections.writer.upsert("c", [given(world)])).errors
    await world.registry.delete(two)
    with pytest.raises(NotFound, match="no shadow for version") as none:
        await world.collections.drop_shadow("c", two)
    assert none.value.reason == "SHADOW_NOT_FOUND"


async def test_rows_that_name_the_version_of_a_shadow_say_what_to_do(tmp_path: Path) -> None:
    """Also of one that is not in memory, whose holders nobody knows."""
    loader = FakeLoader()
    async with search_world(tmp_path, loader, store=LocalStore(tmp_path / "vectors")) as world:
        await fill(world)
        two = await world.load("two")
        await ended(world, await world.reindex("c", two))
        world.registry.release(two, "shadow:c")
        with pytest.raises(FailedPrecondition, match=r"shadow of collection 'c'.*DropShadow"):
            await world.registry.delete(two)


async def test_one_for_another_version_stays(world: World) -> None:
    two, three = await world.load("two"), await world.load("three")
    await ended(world, await world.reindex("c", two))
    with pytest.raises(NotFound, match=f"it has one for {two}"):
        await world.collections.drop_shadow("c", three)
    with pytest.raises(NotFound) as gone:
        await world.collections.drop_shadow("none", two)
    assert gone.value.reason == "COLLECTION_NOT_FOUND"
    assert world.collections.catalogue.get("c").shadow_complete


async def growing(world: World, version: str) -> str:
    """A job that has begun a shadow and needs long for it."""
    await store(world, MANY)
    world.loader.encoders[version].faults.delay_s = 0.1
    job = await world.reindex("c", version)
    async with asyncio.timeout(30):
        while not world.collections.catalogue.get("c").shadow_version:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.005)
    return job


async def test_what_a_job_builds_is_the_jobs(world: World) -> None:
    two = await world.load("two")
    job = await growing(world, two)
    with pytest.raises(FailedPrecondition, match="CancelJob") as grows:
        await world.collections.drop_shadow("c", two)
    assert (grows.value.reason, grows.value.metadata) == ("SHADOW_GROWS", {"job": job})
    await world.jobs.cancel(job)
    assert (await ended(world, job)).state is JobState.CANCELLED
    with pytest.raises(NotFound):
        await world.collections.drop_shadow("c", two)


async def test_what_an_interrupted_job_left_is_given_up_and_made_anew_if_it_goes_on(
    tmp_path: Path,
) -> None:
    loader = FakeLoader()
    async with search_world(tmp_path, loader, store=LocalStore(tmp_path / "vectors")) as world:
        await fill(world)
        two = await world.load("two")
        job = await growing(world, two)
    loader.encoders[two].faults.delay_s = 0.0
    again = LocalStore(tmp_path / "vectors")
    async with search_world(tmp_path, loader, store=again, run_jobs=False) as world:
        await world.jobs.recover()
        assert (await world.jobs.get(job)).state is JobState.INTERRUPTED
        assert (await world.collections.drop_shadow("c", two)).shadow_version is None
        await world.jobs.resume(job)
        await world.jobs.start()
        assert (await ended(world, job)).state is JobState.SUCCEEDED
        record = world.collections.catalogue.get("c")
        assert (record.shadow_version, record.shadow_complete) == (two, True)
        assert await world.store.count(record.shadow_shard) == len(MANY)
