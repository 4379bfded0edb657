"""Points of a collection looked up, listed and counted, below gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from support.search import World, search_world, text_point, text_query, text_vectors

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.errors import InvalidArgument, NotFound, ResourceExhausted
from hotclip_server.search import reader
from hotclip_server.search.filters import FieldTest, PayloadFilter
from hotclip_server.search.reader import Fields
from hotclip_server.search.searcher import SearchOptions

PNG = b"\x89PNG"
ALL = Fields(vectors=True, sources=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with search_world(tmp_path) as world:
        yield world


async def listed(
    world: World, limit: int, payload_filter: PayloadFilter | None = None
) -> list[str]:
    found: list[str] = []
    after = ""
    while True:
        page = await world.collections.reader.page(
            "c", after=after, limit=limit, payload_filter=payload_filter, fields=Fields()
        )
        found += [point.id for point in page.points]
        after = page.following
        if not after:
            return found


async def test_points_come_back_with_what_they_were_made_of(world: World) -> None:
    record = await world.collections.catalogue.create("c")
    large = PNG + bytes(100_000)  # a file of its own
    vector = search_pb2.Vector(data=np.ones(32, "<f4").tobytes(), space_id=record.space_id)
    points = [
        text_point("t", "text", n=1),
        search_pb2.Point(id="small", item=EncodeItem(image=PNG + b"1")),
        search_pb2.Point(id="large", item=EncodeItem(image=large)),
        search_pb2.Point(id="given", vector=vector, reference="https://example.org/1.png"),
    ]
    await world.collections.writer.upsert("c", points)
    get = world.collections.reader.get
    found = await get("c", ["large", "nobody", "t", "given", "small", "t"], ALL)
    assert [point.id for point in found.points] == ["large", "t", "given", "small"]
    assert (found.record.version, found.following) == (world.live, "")
    sources = [point.source for point in found.points]
    assert sources == [
        EncodeItem(image=large).SerializeToString(),
        EncodeItem(text="text").SerializeToString(),
        None,
        EncodeItem(image=PNG + b"1").SerializeToString(),
    ]
    references = [point.reference for point in found.points]
    assert references == ["", "", "https://example.org/1.png", ""]
    text = found.points[1]
    assert text.payload == {"n": 1}
    expected = text_vectors(world.loader.encoders[world.live], ["text"])[0]
    np.testing.assert_allclose(text.vector, expected, atol=1e-6)
    np.testing.assert_allclose(found.points[2].vector, np.full(32, 32**-0.5), atol=1e-6)
    (plain,) = (await get("c", ["given"], Fields())).points
    assert (plain.vector, plain.source, plain.reference) == (None, None, "")

    await world.collections.writer.upsert("c", [text_point("t", "other")])
    (replaced,) = (await get("c", ["t"], ALL)).points
    assert (replaced.payload, EncodeItem.FromString(replaced.source).text) == ({}, "other")
    await world.collections.writer.delete("c", ["t"])
    assert (await get("c", ["t"], ALL)).points == []
    with pytest.raises(NotFound):
        await get("none", ["t"], ALL)
    for ids in ([], ["x"] * 1001):
        with pytest.raises(InvalidArgument, match="ids"):
            await get("c", ids, ALL)


async def test_without_sources_there_is_none(world: World) -> None:
    await world.collections.catalogue.create("c", keep_sources=False)
    await world.collections.writer.upsert("c", [text_point("t", "text")])
    (point,) = (await world.collections.reader.get("c", ["t"], ALL)).points
    assert point.source is None
    assert point.vector is not None


async def test_a_filter_lists_and_counts_the_same(world: World) -> None:
    await world.collections.catalogue.create("c")
    points = [text_point(f"{i}", f"text {i}", n=i, odd=i % 2 == 1) for i in range(50)]
    await world.collections.writer.upsert("c", points)
    odd = PayloadFilter(must=(FieldTest(key="odd", values=(True,)),))
    found = await listed(world, 7, odd)
    assert sorted(found, key=int) == [f"{i}" for i in range(1, 50, 2)]
    assert await world.collections.reader.count("c", odd) == 25
    assert len(set(await listed(world, 1))) == await world.collections.reader.count("c") == 50
    assert await world.collections.delete_matching("c", odd) == 25
    assert await world.collections.delete_matching("c", odd) == 0
    assert sorted(await listed(world, 100), key=int) == [f"{i}" for i in range(0, 50, 2)]


async def test_pages_go_on_across_a_flip(world: World) -> None:
    await world.collections.catalogue.create("c")
    points = [text_point(f"{i}", f"text {i}") for i in range(40)]
    await world.collections.writer.upsert("c", points)
    reader_ = world.collections.reader
    first = await reader_.page("c", after="", limit=15, payload_filter=None, fields=ALL)
    version = await world.load("two")
    async for _ in world.jobs.watch(await world.reindex("c", version)):
        pass
    await world.registry.activate("default", version, collections=["c"])
    rest = await reader_.page(
        "c", after=first.following, limit=100, payload_filter=None, fields=ALL
    )
    assert (first.record.version == version, rest.record.version) == (False, version)
    ids = [point.id for point in first.points + rest.points]
    assert (len(ids), len(set(ids)), rest.following) == (40, 40, "")
    texts = [EncodeItem.FromString(point.source).text for point in rest.points]
    assert texts == [f"text {point.id}" for point in rest.points]
    expected = text_vectors(world.loader.encoders[version], texts)
    np.testing.assert_allclose([point.vector for point in rest.points], expected, atol=1e-6)


async def test_large_sources_make_short_pages(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_PAGE_BYTES", 250_000)
    monkeypatch.setattr(reader, "_ANSWER_BYTES", 250_000)
    await world.collections.catalogue.create("c")
    images = [PNG + bytes([i]) * 100_000 for i in range(5)]
    points = [
        search_pb2.Point(id=f"{i}", item=EncodeItem(image=image)) for i, image in enumerate(images)
    ]
    await world.collections.writer.upsert("c", points)
    sizes, ids, after = [], [], ""
    while True:
        page = await world.collections.reader.page(
            "c", after=after, limit=100, payload_filter=None, fields=Fields(sources=True)
        )
        sizes.append(len(page.points))
        ids += [point.id for point in page.points]
        after = page.following
        if not after:
            break
    assert (sizes, sorted(ids)) == ([2, 2, 1], ["0", "1", "2", "3", "4"])
    with pytest.raises(ResourceExhausted) as large:
        await world.collections.reader.get("c", ids, Fields(sources=True))
    assert large.value.reason == "ANSWER_TOO_LARGE"


async def test_search_by_several_things(world: World) -> None:
    await world.collections.catalogue.create("c")
    texts = [f"text {i}" for i in range(30)]
    await world.collections.writer.upsert("c", [text_point(text, text) for text in texts])
    part = search_pb2.WeightedQuery
    combined = search_pb2.Query(
        combination=search_pb2.Combination(
            parts=[
                part(query=text_query("text 3")),
                part(query=text_query("another"), weight=0.5),
                part(query=search_pb2.Query(point_id="text 9"), weight=-0.7),
            ]
        )
    )
    queries = [text_query("text 5"), combined, search_pb2.Query(point_id="text 1")]
    found = await world.collections.searcher.search(
        "c", queries, SearchOptions(limit=40, exact=True)
    )
    encoder = world.loader.encoders[world.live]
    stored = text_vectors(encoder, texts)
    parts = text_vectors(encoder, ["text 3", "another", "text 9"])
    sums = stored @ (parts[0] + 0.5 * parts[1] - 0.7 * parts[2])
    order = [texts[i] for i in np.argsort(-sums) if texts[i] != "text 9"]
    plain, several, by_id = ([match.id for match in hits] for hits in found.matches)
    assert plain[0] == "text 5"
    assert several == order
    assert len(by_id) == 29
    bad = search_pb2.Query()
    bad.combination.parts.add().query.point_id = "nobody"
    with pytest.raises(NotFound, match=r"queries\[0\]\.combination\.parts\[0\]\.query\.point_id"):
        await world.collections.searcher.search("c", [bad], SearchOptions())
    bad = search_pb2.Query()
    bad.combination.parts.add().query.item.image = b"GIF"
    with pytest.raises(InvalidArgument, match=r"parts\[0\]\.query\.item"):
        await world.collections.searcher.search("c", [bad], SearchOptions())
