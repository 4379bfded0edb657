"""How a reindex goes on, ends, and stays out of the way: interrupted, killed, cancelled, failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.reindexing import QUERIES, check_content, ended, until_progress
from support.search import World, search_world, text_point

from hotclip_proto.v1 import job_pb2, search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem, ImageTensor
from hotclip_server.batching.ticket import Priority
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.jobs.states import JobState
from hotclip_server.models.residents import Pin
from hotclip_server.pipeline import Encoded
from hotclip_server.search import reindex
from hotclip_server.search.searcher import SearchOptions
from hotclip_server.testing import FakeEncoder, FakeLoader


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with search_world(tmp_path) as world:
        yield world


class Noting(FakeEncoder):
    """Remembers which texts it encoded, in order."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.texts: list[str] = []

    def encode(self, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        if tower is Tower.TEXT:
            self.texts += ["".join(map(chr, item.array)) for item in batch]
        return super().encode(tower, batch)


async def test_an_interrupted_reindex_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindex, "_ROWS_TO_NOTE", 512)
    loader = FakeLoader()
    texts = {f"p{i}": f"text {i}" for i in range(1000)}
    encoder = Noting("fake:two")
    loader.encoders[loader.import_source("fake:two").id] = encoder
    async with search_world(tmp_path, loader) as world:
        await world.collections.catalogue.create("c")
        points = [text_point(i, t, text=t) for i, t in texts.items()]
        for start in range(0, len(points), 500):
            await world.collections.writer.upsert("c", points[start : start + 500])
        two = await world.load("two")
        encoder.faults.delay_s = 0.02
        job = await world.reindex("c", two)
        await until_progress(world, job, 0.75)
    encoder.faults.delay_s = 0.0
    async with search_world(tmp_path, loader) as world:
        assert (await world.jobs.get(job)).state is JobState.INTERRUPTED
        record = world.collections.catalogue.get("c")
        assert (record.shadow_version, record.shadow_complete) == (two, False)
        assert record.shadow_revision >= 512
        stored = (await world.store.info(record.shadow_shard or "")).points
        assert record.shadow_revision <= stored < 1000
        texts["p3"] = "x"
        await world.collections.writer.upsert("c", [text_point("p3", "x", text="x")])
        await world.jobs.resume(job)
        events = [event async for event in world.jobs.watch(job)]
        assert events[-1].state.state == job_pb2.JOB_STATE_SUCCEEDED
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        noted = [event.checkpoint.step for event in events if event.HasField("checkpoint")]
        resumed = [event.resumed.from_step for event in events if event.HasField("resumed")]
        assert resumed == [record.shadow_revision] == noted[:1]
        await world.registry.activate("default", two, collections=["c"])
        await check_content(world, texts)
    encoded = Counter(text for text in encoder.texts if text.startswith("text "))
    assert set(encoded) == {f"text {i}" for i in range(1000)}
    # Again only what was under way when the server stopped: at most one step.
    assert sum(encoded.values()) <= 1000 + 64
    assert max(encoded.values()) <= 2


async def test_a_reindex_is_behind_everybody_else(world: World) -> None:
    seen: dict[str, set[Priority]] = {"reindex": set(), "others": set()}
    real = world.pipeline.encode_items
    two = await world.load("two")

    async def encode_items(items: Sequence[EncodeItem], pin: Pin, **options: Any) -> Encoded:
        priority = options.get("priority", Priority.INTERACTIVE)
        ours = pin.resident.version_id == two and items[0].text.startswith("text ")
        seen["reindex" if ours else "others"].add(priority)
        return await real(items, pin, **options)

    await world.collections.catalogue.create("c")
    points = [text_point(f"p{i}", f"text {i}", text=f"text {i}") for i in range(200)]
    await world.collections.writer.upsert("c", points)
    world.pipeline.encode_items = encode_items  # type: ignore[method-assign]  # looked at on its way
    world.loader.encoders[two].faults.delay_s = 0.02
    job = await world.reindex("c", two)
    await until_progress(world, job, 0.1)
    await world.collections.writer.upsert("c", [text_point("w", "a write", text="a write")])
    await world.collections.searcher.search("c", QUERIES, SearchOptions())
    assert (await ended(world, job)).state is JobState.SUCCEEDED
    assert seen == {"reindex": {Priority.BULK}, "others": {Priority.INTERACTIVE}}


async def test_a_source_that_the_version_cannot_encode_is_named(world: World) -> None:
    await world.collections.catalogue.create("c")
    pixels = EncodeItem(tensor=ImageTensor(data=bytes(192), height=8, width=8))
    points = [search_pb2.Point(id=f"t{i}", item=pixels) for i in range(3)]
    await world.collections.writer.upsert("c", [*points, text_point("x", "text")])
    manifest = world.loader.import_source("fake:wide")
    world.loader.encoders[manifest.id] = FakeEncoder("fake:wide", image_size=16)
    job = await ended(world, await world.reindex("c", await world.load("wide")))
    assert job.error is not None
    assert job.error.reason == "SOURCE_UNFIT"
    for name in ("3 point(s)", "'t0'", "'t1'", "'t2'", "16x16"):
        assert name in job.error.message
    assert world.collections.catalogue.get("c").shadow_version is None


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
        large = EncodeItem(image=b"\x89PNG" + bytes(100_000))  # a file of its own
        await world.collections.writer.upsert("c", [search_pb2.Point(id="large", item=large)])
        two = await world.load("two")
        job = await world.reindex("c", two)
        assert (await ended(world, job)).state is JobState.SUCCEEDED
        await world.registry.activate("default", two)
        query = search_pb2.Query(item=large)
        found = await world.collections.searcher.search("c", [query], SearchOptions(limit=1))
        assert (found.matches[0][0].id, found.version) == ("large", two)


async def test_vectors_of_an_unchanged_tower_are_copied(world: World) -> None:
    await world.collections.catalogue.create("c")
    pictures = [EncodeItem(image=b"\x89PNG" + bytes([i])) for i in range(40)]
    await world.collections.writer.upsert(
        "c", [search_pb2.Point(id=f"i{i}", item=item) for i, item in enumerate(pictures)]
    )
    await world.collections.writer.upsert("c", [text_point("t", "text")])
    two = await world.load("tuned@one")
    new = world.loader.encoders[two]
    before = len([tower for tower, _ in new.batches if tower.name == "VISION"])
    assert (await ended(world, await world.reindex("c", two))).state is JobState.SUCCEEDED
    assert len([tower for tower, _ in new.batches if tower.name == "VISION"]) == before
    await world.registry.activate("default", two, collections=["c"])
    query = search_pb2.Query(item=pictures[7])
    found = await world.collections.searcher.search("c", [query], SearchOptions(limit=1))
    assert (found.matches[0][0].id, found.version) == ("i7", two)


KILLS = 6


def test_killed_at_any_moment_it_encodes_nothing_again(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "support.reindex_lives", str(tmp_path), "11", str(KILLS)]
    path = os.pathsep.join([str(root / "tests"), str(root), *sys.path])
    output = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        cwd=root,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    found = json.loads(output.splitlines()[-1])
    assert found["kills"] >= KILLS, "the job ended before it was killed often enough"
    assert (found["state"], found["version"], found["exact"]) == ("SUCCEEDED", True, True)
    assert found["seqs"], "an event is lost or doubled"
    assert found["resumed"] == sorted(found["resumed"])
    # What was acknowledged is there; what was under way at a kill may be.
    acknowledged = (tmp_path / "acknowledged.txt").read_text().split("\n")[:-1]
    stored = set(found["stored"])
    assert set(acknowledged) <= stored
    assert {f"text {n}" for n in range(found["lives"], 2000)} <= stored
    assert f"text {found['lives'] - 1}" not in stored
    assert found["points"] == len(stored)
    encoded = Counter(
        text
        for text in (tmp_path / "encoded.txt").read_text().split("\n")
        if text.startswith("text ")
    )
    assert {f"text {n}" for n in range(found["lives"], 2000)} <= set(encoded)
    # Again only what was under way at a kill: at most one step each.
    assert sum(encoded.values()) <= 2000 + 64 * found["kills"]
