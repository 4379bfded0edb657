"""A flip that comes between two looks of a job that begins a shadow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.local_store import LocalStore
from support.reindexing import check_content, ended
from support.search import World, picture, search_world, text_point

from hotclip_proto.v1 import search_pb2
from hotclip_server.errors import FailedPrecondition
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.states import JobState

TEXTS = {f"p{i}": f"text {i}" for i in range(9)}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with search_world(tmp_path, store=LocalStore(tmp_path / "vectors")) as world:
        await world.collections.catalogue.create("c")
        await store_texts(world, TEXTS)
        yield world


async def store_texts(world: World, texts: dict[str, str]) -> None:
    points = [text_point(i, text, text=text) for i, text in texts.items()]
    assert not (await world.collections.writer.upsert("c", points)).errors


async def check_job(world: World, job: str, version: str) -> None:
    """It succeeded, and every shard that takes part in writes is whole."""
    found = await ended(world, job)
    assert (found.state, found.error) == (JobState.SUCCEEDED, None)
    record = world.collections.catalogue.get("c")
    assert record.version == version
    await asyncio.gather(*world.collections.catalogue._tasks)
    assert set(await world.store.shards()) == set(record.targets().values())
    await store_texts(world, {"new": "a new one"})
    await check_content(world, TEXTS | {"new": "a new one"})
    held = {h for r, _ in world.registry for h in r.holders}
    assert held == {"collection:c"} | ({"shadow:c"} if record.shadow_version else set())


async def queued(world: World, version: str) -> str:
    spec = {"collection": "c", "version": version}
    return (await world.jobs.submit(NewJob(kind=JobKind.REINDEX, spec=spec))).id


async def test_what_is_bound_is_refused_when_asked_for_and_nothing_to_do_when_its_turn_comes(
    world: World,
) -> None:
    two = await world.load("two")
    world.loader.encoders[two].faults.delay_s = 0.05
    await world.registry.activate("default", two)
    first, second = await world.reindex("c", two), await world.reindex("c", two)
    await ended(world, first)
    await check_job(world, second, two)
    assert [e.state.message async for e in world.jobs.watch(second) if e.HasField("state")][-1] == (
        f"c is bound to version {two}"
    )
    with pytest.raises(FailedPrecondition) as bound:
        await world.reindex("c", two)
    assert bound.value.reason == "ALREADY_BOUND"


async def test_a_rollback_comes_while_a_job_waits_for_a_write(world: World) -> None:
    one, two = world.live, await world.load("two")
    await ended(world, await world.reindex("c", two))
    await world.registry.activate("default", two)
    await world.registry.rollback("default")
    lock = world.collections.catalogue.lock("c")
    async with lock:
        job = await world.reindex("c", two)
        async with asyncio.timeout(30):
            while not lock._waiters:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.005)
        await world.registry.rollback("default")
    await check_job(world, job, two)
    # What a rollback needs is still there.
    await world.registry.rollback("default")
    assert world.collections.catalogue.get("c").version == one
    await check_content(world, TEXTS | {"new": "a new one"})


async def test_a_rollback_commits_while_a_job_takes_the_previous_shard(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.live, await world.load("two")
    await ended(world, await world.reindex("c", two))
    await world.registry.activate("default", two)
    await world.registry.rollback("default")
    catalogue = world.collections.catalogue
    change = catalogue.change

    async def late(*args: object) -> object:
        monkeypatch.setattr(catalogue, "change", change)
        await world.registry.rollback("default")
        return await change(*args)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(catalogue, "change", late)
    await check_job(world, await world.reindex("c", two), two)
    await world.registry.rollback("default")
    assert catalogue.get("c").version == one
    await check_content(world, TEXTS | {"new": "a new one"})


async def test_a_collection_follows_while_a_job_makes_its_shadow(world: World) -> None:
    """It is bound to the version already then: one version would have two shards."""
    one, two, locked = world.live, await world.load("two"), await world.load("tuned@one")
    catalogue = world.collections.catalogue
    await catalogue.delete("c")
    await catalogue.create("c")
    await store_pictures(world, 3)
    await world.registry.activate("default", two)  # What is left behind does not follow as it is.
    world.store.gates["create"] = asyncio.Event()
    job = await world.reindex("c", locked)
    async with asyncio.timeout(30):
        while "create" not in world.store.waiting:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.005)
    await world.registry.activate("default", one)
    await world.registry.activate("default", locked)
    world.store.gates["create"].set()
    assert (await ended(world, job)).state is JobState.SUCCEEDED
    record = catalogue.get("c")
    assert (record.version, record.shadow_version) == (locked, None)
    await store_pictures(world, 5)
    assert await world.collections.count("c") == 5
    await asyncio.gather(*catalogue._tasks)
    assert set(await world.store.shards()) == set(record.targets().values())
    assert {h for r, _ in world.registry for h in r.holders} == {"collection:c"}


async def store_pictures(world: World, count: int) -> None:
    points = [search_pb2.Point(id=f"p{n}", item=picture(n)) for n in range(count)]
    assert not (await world.collections.writer.upsert("c", points)).errors
