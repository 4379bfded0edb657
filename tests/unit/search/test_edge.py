"""The vector process as it is: a real child, real shards on disk."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import qdrant_edge as engine

from hotclip_server.errors import NotFound, Unavailable
from hotclip_server.search.edge import EdgeStore
from hotclip_server.search.filters import FieldTest, PayloadFilter
from hotclip_server.search.protocol import PointMeta

from .vectors import clustered, points


async def until_building(store: EdgeStore) -> None:
    while not (await store.info("s")).building:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EdgeStore]:
    store = EdgeStore(tmp_path / "vectors", timeout_s=30)
    await store.start()
    yield store
    await store.close()


async def test_finds_what_exact_search_finds(store: EdgeStore) -> None:
    vectors = clustered(6000, 512)
    queries = clustered(40, 512, seed=1)
    await store.create("s", 512)
    await store.upsert("s", points(len(vectors)), vectors)
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    exact = await store.search("s", queries, limit=10, exact=True)
    assert [[m.id for m in hits] for hits in exact] == [[f"id {i}" for i in r] for r in best]
    assert exact[0][0].score == pytest.approx(float((queries @ vectors.T).max(axis=1)[0]), abs=1e-5)

    await store.optimize("s")
    info = await store.info("s")
    assert (info.points, info.indexed, info.building) == (6000, 6000, False)
    approximate = await store.search("s", queries, limit=10)
    found = [
        len({m.id for m in hits} & {f"id {i}" for i in row})
        for hits, row in zip(approximate, best, strict=True)
    ]
    assert np.mean(found) / 10 >= 0.98


async def test_acknowledged_writes_survive_kill_9(store: EdgeStore) -> None:
    vectors = clustered(300, 16)
    await store.create("s", 16)
    for start in range(0, 300, 50):
        await store.upsert("s", points(300)[start : start + 50], vectors[start : start + 50])
    assert await store.delete("s", ["id 7", "no such id"]) == 1
    first = store.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    # The next call waits for the new process.
    stored = await store.retrieve("s", [f"id {i}" for i in range(300)], with_vectors=True)
    assert store.pid != first
    assert set(stored.revisions) == {f"id {i}" for i in range(300)} - {"id 7"}
    np.testing.assert_allclose(stored.vectors["id 12"], vectors[12], atol=1e-6)


async def test_what_a_service_manager_tells_all_processes_is_for_the_server(
    store: EdgeStore,
) -> None:
    await store.create("s", 8)
    first = store.pid
    assert first is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(first, number)
    assert await store.count("s") == 0
    assert store.pid == first


async def test_calls_under_way_are_sent_again_when_the_process_dies(store: EdgeStore) -> None:
    vectors = clustered(2000, 64)
    await store.create("s", 64)
    writing = asyncio.create_task(store.upsert("s", points(2000), vectors))
    await asyncio.sleep(0.02)
    assert store.pid is not None
    os.kill(store.pid, signal.SIGKILL)
    await writing
    assert (await store.info("s")).points == 2000


async def test_calls_wait_while_a_lost_process_ends(store: EdgeStore) -> None:
    """Between the loss of the connection and the next process no attempt is used up."""
    await store.create("s", 16)
    await store.upsert("s", points(10), clustered(10, 16))
    first, link = store.pid, store._link
    assert link is not None
    link.close()
    await asyncio.sleep(0.01)  # the loss is known; the process closes its shards
    assert store.pid == first
    assert await store.delete("s", ["id 3", "no such id"]) == 1
    assert store.pid != first


async def test_writes_during_an_index_build_are_in_the_new_index(store: EdgeStore) -> None:
    vectors = clustered(12000, 256)
    await store.create("s", 256)
    await store.upsert("s", points(12000), vectors)
    building = asyncio.create_task(store.optimize("s"))
    await until_building(store)
    searched = 0
    fresh = clustered(40, 256, seed=3)
    for i in range(20):
        await store.upsert("s", [PointMeta(f"new {i}", 2, {})], fresh[i : i + 1])
        await store.upsert("s", [PointMeta(f"id {i}", 2, {})], fresh[20 + i : 21 + i])
        await store.delete("s", [f"id {1000 + i}"])
    while not building.done():
        hits = await store.search("s", fresh[:1], limit=1)
        assert hits[0][0].id == "new 0"
        searched += 1
        await asyncio.sleep(0.005)
    await building
    assert searched > 3
    info = await store.info("s")
    assert info.points == 12000
    assert info.indexed > 10000
    stored = await store.retrieve("s", [f"id {i}" for i in range(1100)], with_vectors=True)
    assert stored.revisions["id 3"] == 2
    np.testing.assert_allclose(stored.vectors["id 3"], fresh[23], atol=1e-6)
    assert "id 1005" not in stored.revisions


async def test_kill_9_during_an_index_build_loses_nothing(store: EdgeStore, tmp_path: Path) -> None:
    await store.create("s", 256)
    await store.upsert("s", points(12000), clustered(12000, 256))
    building = asyncio.create_task(store.optimize("s"))
    await until_building(store)
    await store.upsert("s", [PointMeta("late", 2, {})], clustered(1, 256, seed=5))
    assert store.pid is not None
    os.kill(store.pid, signal.SIGKILL)
    await building  # Sent again.
    info = await store.info("s")
    assert (info.points, info.indexed >= 12000) == (12001, True)
    assert len(list((tmp_path / "vectors" / "s").glob("gen-*"))) == 1


async def test_an_idle_shard_indexes_itself(store: EdgeStore) -> None:
    await store.create("s", 512)
    await store.upsert("s", points(6000), clustered(6000, 512))
    async with asyncio.timeout(60):
        while (await store.info("s")).indexed == 0:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)


async def test_the_process_ends_with_the_store(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path)
    await store.start()
    pid = store.pid
    assert pid is not None
    await store.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(Unavailable):
        await store.shards()


async def test_a_name_is_no_path(store: EdgeStore) -> None:
    with pytest.raises(NotFound):
        await store.info("../etc")


async def test_what_is_filtered_by_and_what_was_replaced_is_indexed(
    store: EdgeStore, tmp_path: Path
) -> None:
    vectors, query = clustered(1500, 2048), clustered(1, 2048, seed=1)
    rows = [
        PointMeta(f"id {i}", 1, {"n": i, "even": i % 2 == 0, "o": {"a b": [f"t{i % 30}", "x"]}})
        for i in range(1500)
    ]
    filters = {
        "n": PayloadFilter(must=(FieldTest(key="n", values=(1321,)),)),
        "range": PayloadFilter(must=(FieldTest(key="n", gte=10, lt=40.5),)),
        "even": PayloadFilter(must_not=(FieldTest(key="even", values=(True,)),)),
        "text": PayloadFilter(should=(FieldTest(key="o.a b", values=("t7", "t8")),)),
        # A text where numbers were looked for first: found all the same.
        "none": PayloadFilter(must=(FieldTest(key="n", values=("1321",)),)),
    }
    matching: dict[str, Callable[[int], bool]] = {
        "n": lambda i: i == 1321,
        "range": lambda i: 10 <= i <= 40,
        "even": lambda i: i % 2 == 1,
        "text": lambda i: i % 30 in (7, 8),
        "none": lambda i: False,
    }

    async def check(gone: int) -> None:
        cosines = vectors @ query[0]
        for name, one in filters.items():
            wanted = [i for i in range(gone, 1500) if matching[name](i)]
            best = sorted(wanted, key=lambda i: -cosines[i])[:10]
            (hits,) = await store.search("s", query, limit=10, payload_filter=one, exact=True)
            assert [m.id for m in hits] == [f"id {i}" for i in best], name
            assert await store.count("s", one) == len(wanted), name

    async def built() -> None:
        async with asyncio.timeout(120):
            while (await store.info("s")).indexed < 1400:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)

    await store.create("s", 2048)
    await store.upsert("s", rows, vectors)
    await check(0)  # Before there is an index of any kind.
    await built()
    await check(0)
    # What is replaced is not in the index any more, though the engine goes on counting it.
    vectors = clustered(1500, 2048, seed=9)
    await store.upsert("s", rows, vectors)
    await store.delete("s", [f"id {i}" for i in range(20)])
    assert (await store.info("s")).indexed < 100
    await check(20)
    await built()
    await check(20)
    first = store.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await check(20)
    await store.close()
    (folder,) = (tmp_path / "vectors" / "s").glob("gen-*")
    schema = engine.EdgeShard.load(str(folder)).info().payload_schema
    assert set(schema) == {"p.n", "p.even", 'p.o."a b"'}


async def test_callers_that_leave_do_not_fill_the_process(store: EdgeStore) -> None:
    vectors = clustered(2000, 256)
    await store.create("s", 256)
    await store.upsert("s", points(2000), vectors)
    for _ in range(4):
        asking = [
            asyncio.create_task(store.search("s", vectors[:32], limit=10, exact=True))
            for _ in range(100)
        ]
        await asyncio.sleep(0.01)
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert len(store._pending) <= 64
    # Nor are places lost.
    found = await asyncio.gather(
        *(store.search("s", vectors[i : i + 1], limit=1) for i in range(100))
    )
    assert [hits[0][0].id for hits in found] == [f"id {i}" for i in range(100)]
    async with asyncio.timeout(60):
        while store._pending:  # noqa: ASYNC110 - searches of those who left, cut for others
            await asyncio.sleep(0.01)
    assert store._slots._value == 64


async def test_a_process_that_does_nothing_is_replaced(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "vectors", timeout_s=1.0)
    await store.start()
    await store.create("s", 16)
    first = store.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(Unavailable):
        await store.count("s")
    async with asyncio.timeout(30):
        while store.pid in (first, None):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    assert await store.count("s") == 0
    await store.close()


async def test_leftovers_of_a_shard_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "vectors"
    (root / "half" / "gen-1").mkdir(parents=True)
    store = EdgeStore(root, timeout_s=30)
    await store.start()
    await store.create("s", 16)
    assert await store.shards() == ["s"]
    await store.close()
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["s"]


async def test_indexes_are_built_one_after_the_other(store: EdgeStore) -> None:
    names, vectors = ["a", "b", "c"], clustered(1300, 2048)
    for name in names:
        await store.create(name, 2048)
        await store.upsert(name, points(1300), vectors)
    left, seen = set(names), 0
    async with asyncio.timeout(120):
        while left:
            for one, other in permutations(names, 2):
                # Each is built once: what is being built before and after was so in between.
                infos = [await store.info(name) for name in (one, other, one)]
                building = [info.building for info in infos]
                assert not all(building), (one, other)
                seen += any(building)
                left -= {one} if infos[-1].indexed == 1300 else set()
            await asyncio.sleep(0.01)
    assert seen
