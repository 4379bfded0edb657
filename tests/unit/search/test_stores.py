"""What every vector store promises: the engine in a process of its own, and Qdrant in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient

from hotclip_server.errors import NotFound
from hotclip_server.search.edge import EdgeStore
from hotclip_server.search.filters import FieldTest, PayloadFilter
from hotclip_server.search.ids import cursor_of
from hotclip_server.search.protocol import PointMeta, VectorStore
from hotclip_server.search.qdrant_store import QdrantStore

from .vectors import clustered, points

# What the engine in memory lacks; a server has it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect"),
]

ROWS = [
    PointMeta(
        str(i),
        1,
        {
            "n": i,
            "even": i % 2 == 0,
            "f": i / 2,
            "o": {"deep er": {"tag": f"t{i}"}},
            "tags": [f"x{i}", f"y{i}"],
        },
    )
    for i in range(10)
]


@pytest.fixture(params=["edge", "qdrant"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[VectorStore]:
    made: VectorStore
    if request.param == "edge":
        made = EdgeStore(tmp_path / "vectors", timeout_s=30)
    else:
        made = QdrantStore(AsyncQdrantClient(":memory:"), tmp_path / "namespace")
    await made.start()
    yield made
    await made.close()


async def test_exact_search_finds_the_nearest(store: VectorStore) -> None:
    vectors, queries = clustered(400, 32), clustered(20, 32, seed=1)
    await store.create("s", 32)
    await store.upsert("s", points(400), vectors)
    found = await store.search("s", queries, limit=10, exact=True)
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert [[m.id for m in hits] for hits in found] == [[f"id {i}" for i in r] for r in best]
    assert found[0][0].score == pytest.approx(float((queries @ vectors.T).max(axis=1)[0]), abs=1e-5)
    assert found[0][0].payload == {"n": int(best[0][0]), "even": bool(best[0][0] % 2 == 0)}
    info = await store.info("s")
    assert (info.dim, info.points) == (32, 400)


@pytest.mark.parametrize(
    ("payload_filter", "expected"),
    [
        (PayloadFilter(must=(FieldTest(key="n", values=(5,)),)), {5}),
        (PayloadFilter(must=(FieldTest(key="even", values=(True,)),)), {0, 2, 4, 6, 8}),
        (PayloadFilter(must=(FieldTest(key="o.deep er.tag", values=("t3",)),)), {3}),
        (PayloadFilter(must=(FieldTest(key="tags", values=("x1", "y1")),)), {1}),
        (PayloadFilter(must=(FieldTest(key="f", gte=1.0, lt=2.5),)), {2, 3, 4}),
        (PayloadFilter(must=(FieldTest(key="n", gt=7.5),)), {8, 9}),
        (PayloadFilter(must=(FieldTest(key="o.deep er.tag", values=()),)), set()),
        (
            PayloadFilter(
                should=(FieldTest(key="n", values=(1,)), FieldTest(key="n", lte=0)),
                must_not=(FieldTest(key="n", values=(0,)),),
            ),
            {1},
        ),
    ],
)
async def test_filters(
    store: VectorStore, payload_filter: PayloadFilter, expected: set[int]
) -> None:
    await store.create("s", 4)
    await store.upsert("s", ROWS, clustered(10, 4))
    (hits,) = await store.search(
        "s", clustered(1, 4), limit=10, payload_filter=payload_filter, exact=True
    )
    assert {int(m.id) for m in hits} == expected
    listed, end = await store.scroll("s", payload_filter=payload_filter)
    assert ({int(p.id) for p in listed}, end) == (expected, "")
    assert await store.count("s", payload_filter) == len(expected)


async def test_search_leaves_out_and_thresholds(store: VectorStore) -> None:
    vectors = clustered(50, 8)
    await store.create("s", 8)
    await store.upsert("s", points(50), vectors)
    one, other = await store.search("s", vectors[:2], limit=50, exclude=[["id 0", "id 3"], []])
    assert {m.id for m in one} == {f"id {i}" for i in range(50)} - {"id 0", "id 3"}
    assert other[0].id == "id 1"
    (near,) = await store.search("s", vectors[:1], limit=50, score_threshold=0.5)
    assert near
    assert all(m.score >= 0.5 for m in near)
    assert len(near) == int((vectors @ vectors[0] >= 0.5).sum())


async def test_points_are_looked_up_replaced_and_removed(store: VectorStore) -> None:
    vectors = clustered(20, 8)
    await store.create("s", 8)
    await store.upsert("s", points(20), vectors)
    await store.upsert("s", [PointMeta("id 3", 2, {"new": [True, None, 1.5]})], vectors[9:10])
    found = await store.retrieve("s", ["id 3", "nobody", "id 4", "id 3"])
    assert found.revisions == {"id 3": 2, "id 4": 1}
    assert (found.vectors, found.payloads) == ({}, {})
    found = await store.retrieve("s", ["id 3"], with_vectors=True, with_payloads=True)
    np.testing.assert_allclose(found.vectors["id 3"], vectors[9], atol=1e-6)
    assert found.payloads == {"id 3": {"new": [True, None, 1.5]}}
    assert await store.delete("s", ["id 3", "id 3", "nobody"]) == 1
    assert await store.delete("s", ["id 3"]) == 0
    assert await store.count("s") == 19


async def test_pages_go_on_in_the_order_of_cursors(store: VectorStore) -> None:
    await store.create("s", 8)
    await store.upsert("s", points(20), clustered(20, 8))
    order = sorted((f"id {i}" for i in range(20)), key=cursor_of)
    listed: list[str] = []
    after = ""
    while True:
        page, after = await store.scroll("s", after=after, limit=6)
        listed += [point.id for point in page]
        if not after:
            break
        assert (len(page), after) == (6, cursor_of(order[len(listed)]))
        # What was listed, and the point that comes next, go; the rest is listed all the same.
        await store.delete("s", [listed[0], order[len(listed)]])
        order.remove(order[len(listed)])
    assert listed == order


async def test_a_page_is_cut_before_it_is_too_large(store: VectorStore) -> None:
    large = [PointMeta(f"{i}", 1, {"text": "x" * 60_000}) for i in range(200)]
    await store.create("s", 4)
    await store.upsert("s", large, clustered(200, 4))
    page, after = await store.scroll("s", limit=1000)
    assert 0 < len(page) < 200
    rest, end = await store.scroll("s", after=after, limit=1000)
    assert (len(page) + len(rest), end) == (200, "")


async def test_shards_come_and_go(store: VectorStore) -> None:
    await store.create("a", 4)
    await store.create("a", 4)
    await store.upsert("a", points(3), clustered(3, 4))
    assert await store.shards() == ["a"]
    await store.flush("a")
    await store.drop("a")
    await store.drop("a")
    assert await store.shards() == []
    one = clustered(1, 4)
    asked: list[Callable[[], Awaitable[object]]] = [
        lambda: store.info("a"),
        lambda: store.count("a"),
        lambda: store.scroll("a"),
        lambda: store.retrieve("a", ["x"]),
        lambda: store.search("a", one, limit=1),
        lambda: store.upsert("a", points(1), one),
        lambda: store.delete("a", ["x"]),
    ]
    for ask in asked:
        with pytest.raises(NotFound) as missing:
            await ask()
        assert missing.value.reason == "SHARD_NOT_FOUND"
