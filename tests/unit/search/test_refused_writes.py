"""A write that is refused, for the disk is full, leaves nothing behind."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.exc import OperationalError
from support.local_store import LocalStore
from support.reindexing import check_content, ended
from support.search import World, picture, search_world, text_point, text_vectors

from hotclip_proto.v1 import search_pb2
from hotclip_server.errors import ResourceExhausted
from hotclip_server.jobs.states import JobState
from hotclip_server.search import edge, records, room, settling
from hotclip_server.testing import FakeLoader

OLD = {f"p{i}": f"old {i}" for i in range(4)}
NEW = {f"p{i}": f"new {i}" for i in (1, 5, 2, 6, 3, 7)}
LONG = "long " * 10_000
MANY, OTHERS = ({f"p{i}": f"{text} {i}" for i in range(9)} for text in ("old", "new"))


class Filling(LocalStore):
    """Refuses writes from a number of frames on."""

    frames_left: int | None = None

    async def _call(
        self, op: str, *, body: bytes = b"", timeout_s: float | None = None, **header: object
    ) -> tuple[Any, bytes]:
        if op == "upsert" and self.frames_left is not None:
            if self.frames_left == 0:
                raise ResourceExhausted("no room", reason="DISK_FULL")
            self.frames_left -= 1
        return await super()._call(op, body=body, timeout_s=timeout_s, **header)


def points_of(texts: dict[str, str]) -> list[search_pb2.Point]:
    return [text_point(i, text, text=text) for i, text in texts.items()]


async def refused(world: World, texts: dict[str, str]) -> None:
    with pytest.raises(ResourceExhausted) as full:
        await world.collections.writer.upsert("c", points_of(texts))
    assert full.value.reason == "DISK_FULL"


async def kept(world: World) -> dict[str, tuple[int, str]]:
    """Revision and text of every row."""
    rows = await world.database.run(lambda c: records.sources_after(c, "c", 0, 100))
    return {row.point_id: (row.revision, row.payload["text"]) for row in rows}


async def settled(world: World) -> None:
    async with asyncio.timeout(30):
        while world.collections.catalogue.unsettled:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)


async def check_shards(world: World, texts: dict[str, str]) -> None:
    """Every shard holds these texts, by its version, under the revisions of the rows."""
    rows = await kept(world)
    assert {i: text for i, (_, text) in rows.items()} == texts
    record = world.collections.catalogue.get("c")
    for version, shard in record.targets().items():
        stored = await world.store.retrieve(shard, list({*OLD, *NEW, *MANY}), with_vectors=True)
        assert stored.revisions == {i: revision for i, (revision, _) in rows.items()}
        expected = text_vectors(world.loader.encoders[version], list(texts.values()))
        vectors = np.stack([stored.vectors[i] for i in texts])
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    await check_content(world, texts)


async def test_on_a_nearly_full_disk_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_TRUST_S", 0.0)
    async with search_world(tmp_path, store=LocalStore(tmp_path / "vectors")) as world:
        await world.collections.catalogue.create("c")
        await world.collections.writer.upsert("c", points_of(OLD))
        rows, batches = await kept(world), list(world.loader.encoders[world.live].batches)
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=32 << 20))
        await refused(world, NEW | {"long": LONG})
        assert await kept(world) == rows
        assert world.loader.encoders[world.live].batches == batches
        assert not list((tmp_path / "sources").rglob("*"))
        assert not world.collections.catalogue.unsettled
        # What a caller did wrong is told all the same, and removing makes room.
        done = await world.collections.writer.upsert("c", [search_pb2.Point(id="empty")])
        assert list(done.errors) == [0]
        assert await world.collections.writer.delete("c", ["p0"]) == 1
        monkeypatch.undo()
        del rows["p0"]
        assert await kept(world) == rows
        await check_shards(world, {i: text for i, text in OLD.items() if i != "p0"})


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("frames", range(6))
async def test_what_was_refused_in_the_middle_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int, restart: bool
) -> None:
    """The disk may fill up after there was room."""
    monkeypatch.setattr(edge, "_ROWS_PER_FRAME", 2)
    monkeypatch.setattr(settling, "_RETRY_S", 0.02)
    loader = FakeLoader()
    store = Filling(tmp_path / "vectors")
    async with search_world(tmp_path, loader, store=store) as world:
        await world.collections.catalogue.create("c")
        await world.collections.writer.upsert("c", points_of(OLD))
        # Two shards take every write.
        job = await world.reindex("c", await world.load("two"))
        assert (await ended(world, job)).state is JobState.SUCCEEDED
        store.frames_left = frames
        await refused(world, NEW)
        assert {i: text for i, (_, text) in (await kept(world)).items()} == OLD
        # What it added is gone at once, and what it replaced, too, where there was no room for it.
        assert await world.collections.count("c") == len(OLD)
        await refused(world, {"p9": "another"})
        assert await world.collections.writer.delete("c", ["p0"]) == 1
        if not restart:
            store.frames_left = None
            await settled(world)
            await check_shards(world, {i: text for i, text in OLD.items() if i != "p0"})
            await world.collections.writer.upsert("c", points_of(NEW))
            await check_shards(world, {i: t for i, t in (OLD | NEW).items() if i != "p0"})
    if restart:
        store = Filling(tmp_path / "vectors")
        async with search_world(tmp_path, loader, store=store) as world:
            await settled(world)
            await check_shards(world, {i: text for i, text in OLD.items() if i != "p0"})


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("pages", [0, 1, 2, 3, 6])
async def test_settling_that_breaks_off_between_pages_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int, restart: bool
) -> None:
    """Five pages are to be restored in each of two shards, and there is room for some of them."""
    monkeypatch.setattr(edge, "_ROWS_PER_FRAME", 2)
    monkeypatch.setattr(settling, "_ROWS", 2)
    monkeypatch.setattr(settling, "_RETRY_S", 60.0)  # The test itself says when.
    loader, store = FakeLoader(), Filling(tmp_path / "vectors")
    async with search_world(tmp_path, loader, store=store) as world:
        await world.collections.catalogue.create("c")
        await world.collections.writer.upsert("c", points_of(MANY))
        job = await world.reindex("c", await world.load("two"))
        assert (await ended(world, job)).state is JobState.SUCCEEDED
        store.frames_left = 7  # The refused write is whole in one shard, and begun in the other.
        await refused(world, OTHERS)
        store.frames_left = pages
        for _ in range(3):
            with pytest.raises(ResourceExhausted):
                await world.collections.writer.settle("c")
        assert store.frames_left == 0
        if not restart:
            store.frames_left = None
            await world.collections.writer.settle("c")
            await check_shards(world, MANY)
    if restart:
        store = Filling(tmp_path / "vectors")
        async with search_world(tmp_path, loader, store=store) as world:
            await settled(world)
            await check_shards(world, MANY)


async def test_a_restart_stores_what_settling_had_not_when_it_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_ROWS", 2)
    monkeypatch.setattr(settling, "_RETRY_S", 60.0)
    loader, store = FakeLoader(), Filling(tmp_path / "vectors")
    async with search_world(tmp_path, loader, store=store) as world:
        await world.collections.catalogue.create("c")
        await world.collections.writer.upsert("c", points_of(MANY))
        store.frames_left = 0
        await refused(world, OTHERS)
        store.frames_left = 1
        with pytest.raises(ResourceExhausted):
            await world.collections.writer.settle("c")
        assert store.frames_left == 0
    # No second look before the restart.
    store = Filling(tmp_path / "vectors")
    async with search_world(tmp_path, loader, store=store) as world:
        await settled(world)
        await check_shards(world, MANY)


@pytest.mark.parametrize("held", [False, True])
async def test_a_refused_write_that_replaced_none_leaves_no_kind_of_points_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    monkeypatch.setattr(settling, "_RETRY_S", 0.02)
    store = Filling(tmp_path / "vectors")
    async with search_world(tmp_path, store=store) as world:
        catalogue = world.collections.catalogue
        await catalogue.create("c")
        images = [search_pb2.Point(id="p1", item=picture(1))]
        if held:
            await world.collections.writer.upsert("c", images)
        before = catalogue.get("c").sides
        assert before == (False, held, False)
        store.frames_left = 0
        await refused(world, OLD)
        # A shard may hold a text in place of the image until it is settled.
        assert catalogue.get("c").sides == ((True, True, False) if held else before)
        store.frames_left = None
        await settled(world)
        assert await world.database.run(lambda c: records.read(c, "c")) == catalogue.get("c")
        await world.collections.writer.upsert("c", points_of(OLD))
        assert catalogue.get("c").sides == (True, held, False)


async def test_a_refused_write_that_cannot_be_taken_back_is_stored_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database may lie on the same full disk."""
    monkeypatch.setattr(settling, "_RETRY_S", 0.02)
    store = Filling(tmp_path / "vectors")
    async with search_world(tmp_path, store=store) as world:
        await world.collections.catalogue.create("c")
        await world.collections.writer.upsert("c", points_of(OLD))

        def full(*_: object) -> None:
            raise OperationalError("UPDATE", {}, Exception("database or disk is full"))

        store.frames_left = 0
        with monkeypatch.context() as patch:
            patch.setattr(records, "mark_deleted", full)
            await refused(world, NEW)
        store.frames_left = None
        await settled(world)
        await check_shards(world, OLD | NEW)


@pytest.mark.parametrize("start", [False, True])
async def test_settling_goes_on_after_whatever_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, start: bool
) -> None:
    """The database's disk may be full, and an engine may fail as it likes: nobody writes again, and
    what was acknowledged is to be found all the same."""
    monkeypatch.setattr(settling, "_RETRY_S", 0.02)
    loader, store = FakeLoader(), Filling(tmp_path / "vectors")
    errors: list[Exception] = []

    def fail(*_: object) -> None:
        raise errors[-1]

    async with search_world(tmp_path, loader, store=store) as world:
        await world.collections.catalogue.create("c")
        await world.collections.writer.upsert("c", points_of(OLD))
        with monkeypatch.context() as patch:
            patch.setattr(records, "deleted_ids", fail)
            errors.append(OperationalError("SELECT", {}, Exception("database or disk is full")))
            if start:
                await world.store.drop(world.collections.catalogue.get("c").shard)
            else:
                store.frames_left = 0
                await refused(world, NEW)
                store.frames_left = None
                await _told(caplog, "database or disk is full")
                errors.append(RuntimeError("the vector engine failed"))
                await _told(caplog, "not settled yet: RuntimeError: the vector engine failed")
                assert "Traceback" in caplog.text
                tries = len(caplog.records)
                await asyncio.sleep(0.3)
                assert len(caplog.records) == tries  # Once is enough.
        if not start:
            await settled(world)
            await check_shards(world, OLD)
    if start:
        again = Filling(tmp_path / "vectors")
        with monkeypatch.context() as patch:
            patch.setattr(records, "deleted_ids", fail)
            starting = search_world(tmp_path, loader, store=again)
            world = await starting.__aenter__()
            assert world.collections.catalogue.unsettled == {"c"}
        try:
            await settled(world)
            await check_shards(world, OLD)
        finally:
            await starting.__aexit__(None, None, None)


async def _told(caplog: pytest.LogCaptureFixture, what: str) -> None:
    async with asyncio.timeout(30):
        while what not in caplog.text:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)


async def test_a_reindex_that_saw_a_refused_write_finds_what_was_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_RETRY_S", 0.02)
    store = Filling(tmp_path / "vectors")
    async with search_world(tmp_path, store=store, run_jobs=False) as world:
        await world.collections.catalogue.create("c")
        await world.collections.writer.upsert("c", points_of(OLD))
        two, reindexer = await world.load("two"), world.collections.reindexer
        assert not (await reindexer._begin("c", two)).ended
        take_back = world.collections.writer._settler.take_back
        seen: list[int] = []

        async def late(*args: Any) -> None:
            # As a job does that reads the rows meanwhile, and goes on after the last of them.
            seen.append(await world.database.run(lambda c: records.last_revision(c, "c")))
            await take_back(*args)

        monkeypatch.setattr(world.collections.writer._settler, "take_back", late)
        store.frames_left = 0
        await refused(world, NEW)
        store.frames_left = None
        await settled(world)
        step = await reindexer._step("c", two, seen[0])
        assert step.revision > seen[0]
        while not step.ended:
            step = await reindexer._step("c", two, step.revision)
        shard = world.collections.catalogue.get("c").shadow_shard
        there = set((await world.store.retrieve(shard, [*OLD, *NEW])).revisions)
        assert there >= {"p1", "p2", "p3"}
        assert there <= set(OLD)


async def test_with_plenty_of_room_the_disk_is_looked_at_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, free = 0, [4 << 30]
    usage = shutil.disk_usage(tmp_path)

    def look(_: Path) -> object:
        nonlocal looks
        looks += 1
        return usage._replace(free=free[0])

    monkeypatch.setattr(shutil, "disk_usage", look)
    seen = room.Room(tmp_path)
    for _ in range(100):
        await seen.require(1 << 20)
    assert looks == 2
    with pytest.raises(ResourceExhausted):
        await seen.require(5 << 30)
    free[0] = (64 << 20) + 5
    seen = room.Room(tmp_path)
    for _ in range(2):
        await seen.require(5)
        with pytest.raises(ResourceExhausted):
            await seen.require(6)
