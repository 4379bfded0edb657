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
from support.history import History, Span
from support.reindexing import QUERIES, check_content, ended
from support.search import World, search_world, text_point, text_vectors

from hotclip_proto.v1 import search_pb2
from hotclip_server.errors import FailedPrecondition
from hotclip_server.jobs.states import JobState
from hotclip_server.search import reindex
from hotclip_server.search.searcher import SearchOptions


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with search_world(tmp_path) as world:
        yield world


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


class Load:
    """Writes, deletes and searches for as long as it is told; checks every answer against what
    may have been stored then, by the version that it names."""

    LIMIT = 20

    def __init__(self, world: World, texts: dict[str, str]) -> None:
        self.history = History()
        self._world = world
        self._texts = texts
        self._stopping = asyncio.Event()

    async def begin(self) -> None:
        points = [text_point(i, t, text=t) for i, t in self._texts.items()]
        with self.history.writing(self._texts):
            await self._world.collections.writer.upsert("c", points)

    async def write(self, writer: int) -> None:
        """Points of other writers are left alone."""
        upsert, delete = (
            self._world.collections.writer.upsert,
            self._world.collections.writer.delete,
        )
        for turn in itertools.count():
            if self._stopping.is_set():
                return
            changes: dict[str, str | None] = {
                f"p{2 * (turn * 7 % 150) + writer}": f"changed {turn} {writer}",
                f"new {turn % 50} {writer}": f"new {turn} {writer}",
            }
            points = [text_point(i, t or "", text=t) for i, t in changes.items()]
            with self.history.writing(changes):
                done = await upsert("c", points)
            assert not done.errors
            gone = f"p{2 * (turn * 11 % 150) + writer}"
            with self.history.writing({gone: None}):
                await delete("c", [gone])

    async def search(self, *, exact: bool = True, space_id: str = "") -> str:
        """One search; the version that answered."""
        options = SearchOptions(limit=self.LIMIT, exact=exact, expected_space_id=space_id)
        asked = self.history.now()
        found = await self._world.collections.searcher.search("c", QUERIES, options)
        answered = self.history.now()
        encoder = self._world.loader.encoders[found.version]
        assert found.space_id == encoder.spec.space_id
        for query, matches in zip(QUERIES, found.matches, strict=True):
            self.history.check(encoder, query.item.text, matches, self.LIMIT, asked, answered)
        if space_id:
            assert found.space_id == space_id
        else:
            self.history.searches.append(Span(asked, answered, found.version))
        return found.version

    async def searches(self, *, exact: bool = True, space_id: str = "") -> None:
        while not self._stopping.is_set():
            await self.search(exact=exact, space_id=space_id)

    async def answers(self, count: int) -> None:
        """Waits for more."""
        until = len(self.history.searches) + count
        async with asyncio.timeout(60):
            while len(self.history.searches) < until:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.005)

    def stop(self) -> None:
        self._stopping.set()


async def test_reindex_flip_and_rollback_under_load(world: World) -> None:
    one = world.live
    await world.collections.catalogue.create("c")
    load = Load(world, {f"p{i}": f"text {i}" for i in range(600)})
    await load.begin()
    two = await world.load("two")
    old, new = (world.loader.encoders[version].spec.space_id for version in (one, two))
    flip = load.history.flip
    async with asyncio.TaskGroup() as group:
        for writer in range(2):
            group.create_task(load.write(writer))
        group.create_task(load.searches())
        group.create_task(load.searches(exact=False))
        # Who has vectors of the old space is answered all through it.
        group.create_task(load.searches(space_id=old))
        await load.answers(10)
        job = await ended(world, await world.reindex("c", two))
        assert (job.state, job.progress) == (JobState.SUCCEEDED, 1.0)
        record = world.collections.catalogue.get("c")
        assert (record.version, record.shadow_version, record.shadow_complete) == (one, two, True)
        group.create_task(load.searches(space_id=new))
        await load.answers(10)
        await flip(world.registry.activate("default", two, collections=["c"]), two)
        assert await load.search() == two
        await load.answers(20)
        await flip(world.registry.rollback("default"), one)
        assert await load.search() == one
        await load.answers(20)
        await flip(world.registry.rollback("default"), two)
        await load.answers(10)
        load.stop()
    assert {span.version for span in load.history.searches} == {one, two}
    load.history.check_versions()
    # No write of before, between or after is missing on either side.
    await check_content(world, load.history.final())
    await world.registry.rollback("default")
    assert world.collections.catalogue.get("c").version == one
    await check_content(world, load.history.final())


@pytest.mark.parametrize(("rows", "looks"), [(256, 16), (64, 1)])
async def test_large_batches_without_a_pause_do_not_keep_it(
    world: World, monkeypatch: pytest.MonkeyPatch, rows: int, looks: int
) -> None:
    """Looking at few rows, two writers are as far ahead of it as many would be."""
    monkeypatch.setattr(reindex, "_LOOK_ROWS", rows)
    monkeypatch.setattr(reindex, "_LOOKS", looks)
    upsert = world.collections.writer.upsert
    await world.collections.catalogue.create("c")
    texts = {f"p{i}": f"text {i}" for i in range(400)}
    await upsert("c", [text_point(i, t, text=t) for i, t in texts.items()])
    two = await world.load("two")
    stop = asyncio.Event()

    async def write(writer: int) -> None:
        for turn in itertools.count():
            if stop.is_set():
                return
            batch = {f"w{writer} {i}": f"{writer} {turn} {i}" for i in range(256)}
            texts.update(batch)
            done = await upsert("c", [text_point(i, t, text=t) for i, t in batch.items()])
            assert not done.errors

    async with asyncio.TaskGroup() as group:
        for writer in range(2):
            group.create_task(write(writer))
        job = await world.reindex("c", two)
        assert (await ended(world, job)).state is JobState.SUCCEEDED
        await world.registry.activate("default", two, collections=["c"])
        stop.set()
    await check_content(world, texts)


async def test_writes_go_on_while_shards_come_and_go(world: World) -> None:
    await world.collections.catalogue.create("c")
    load = Load(world, {f"p{i}": f"text {i}" for i in range(100)})
    await load.begin()
    versions = [await world.load(seed) for seed in ("two", "three", "four")]
    async with asyncio.TaskGroup() as group:
        group.create_task(load.write(0))
        group.create_task(load.searches())
        for version in versions:
            assert (await ended(world, await world.reindex("c", version))).error is None
            await load.history.flip(
                world.registry.activate("default", version, collections=["c"]), version
            )
            # The vector process dies as well; nobody notices.
            killed = world.store.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            # A call outlives two deaths of the process, not three.
            while world.store.pid in (killed, None):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await world.store.shards()
        load.stop()
    load.history.check_versions()
    assert world.collections.catalogue.get("c").version == versions[-1]
    await check_content(world, load.history.final())
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
