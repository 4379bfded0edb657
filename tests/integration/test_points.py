"""Points looked up, listed, counted and combined, through both clients, against a real server."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from support.pictures import encoded, photograph
from support.search import text_point
from support.server import ServerProcess

from hotclip import AsyncClient, Between, Client, Combined, Filter, PointId
from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import search_pb2, search_pb2_grpc
from hotclip_proto.v1.types_pb2 import EncodeItem


@pytest.fixture
def search(server: ServerProcess) -> Iterator[search_pb2_grpc.SearchServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield search_pb2_grpc.SearchServiceStub(channel)


def test_points_are_looked_up_listed_and_counted(
    search: search_pb2_grpc.SearchServiceStub, server: ServerProcess
) -> None:
    made = search.CreateCollection(search_pb2.CreateCollectionRequest(name="points"), timeout=20)
    picture = encoded(photograph(1), "JPEG")
    points = [text_point(f"t{i}", f"text {i}", n=i, odd=i % 2 == 1) for i in range(25)]
    points.append(search_pb2.Point(id="p", item=EncodeItem(image=picture)))
    search.Upsert(search_pb2.UpsertRequest(collection="points", points=points), timeout=30)
    fields = search_pb2.PointFields(vectors=True, sources=True)
    get = search_pb2.GetPointsRequest(collection="points", ids=["p", "none", "t3"], fields=fields)
    got = search.GetPoints(get, timeout=20)
    assert (got.version, got.space_id) == (made.version, made.space_id)
    assert [point.id for point in got.points] == ["p", "t3"]
    image, text = got.points
    assert (image.source.image, text.source.text) == (picture, "text 3")
    assert (text.payload["n"], text.vector.space_id) == (3, made.space_id)
    query = search_pb2.Query(vector=text.vector)
    request = search_pb2.SearchRequest(collection="points", queries=[query], limit=1)
    assert search.Search(request, timeout=20).results[0].hits[0].id == "t3"

    odd = search_pb2.Filter(must=[search_pb2.Condition(key="odd", equals_bool=True)])
    count = search_pb2.CountPointsRequest(collection="points", filter=odd)
    assert search.CountPoints(count, timeout=20).points == 12
    found, token = [], ""
    while True:
        page = search.ListPoints(
            search_pb2.ListPointsRequest(
                collection="points", filter=odd, page_size=5, page_token=token
            ),
            timeout=20,
        )
        assert not page.points[0].HasField("vector")
        found += [point.id for point in page.points]
        if not page.next_page_token:
            break
        token = page.next_page_token
    assert sorted(found) == sorted(f"t{i}" for i in range(1, 25, 2))

    wrong = [
        (search_pb2.ListPointsRequest(collection="points", page_token=token), "page_token"),
        (search_pb2.ListPointsRequest(collection="points", page_size=1001), "page_size"),
        (
            search_pb2.ListPointsRequest(
                collection="points", filter=search_pb2.Filter(must=[search_pb2.Condition()])
            ),
            "filter.must[0].key",
        ),
    ]
    for bad, field in wrong:
        with pytest.raises(grpc.RpcError) as refused:
            search.ListPoints(bad, timeout=20)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in refused.value.details()
    with pytest.raises(grpc.RpcError) as refused:
        search.GetPoints(search_pb2.GetPointsRequest(collection="points"), timeout=20)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for ask in (
        lambda: search.GetPoints(search_pb2.GetPointsRequest(collection="no", ids=["a"])),
        lambda: search.ListPoints(search_pb2.ListPointsRequest(collection="no")),
        lambda: search.CountPoints(search_pb2.CountPointsRequest(collection="no")),
    ):
        with pytest.raises(grpc.RpcError) as missing:
            ask()
        assert missing.value.code() is grpc.StatusCode.NOT_FOUND


async def test_both_clients_look_up_list_count_and_combine(server: ServerProcess) -> None:
    texts = [f"a thing of kind {i}" for i in range(30)]
    picture = photograph(2)
    with Client(server.address) as client:
        client.create_collection("twins")
        client.upsert("twins", [(text, text, {"n": i}) for i, text in enumerate(texts)])
        client.upsert("twins", [("picture", picture, {"deep": {"list": [1, 2.5, None, True]}})])
        got = client.get_points("twins", ["picture", "none", texts[3]], vectors=True, sources=True)
        assert [point.id for point in got] == ["picture", texts[3]]
        assert got[0].payload == {"deep": {"list": [1, 2.5, None, True]}}
        assert got[1].source == texts[3]
        again = client.encode([got[0].source, got[1].source])
        np.testing.assert_allclose(again, [p.vector.values for p in got], atol=1e-4)
        listed = list(client.list_points("twins", page_size=7))
        assert {point.id for point in listed} == {*texts, "picture"}
        assert len(listed) == client.count_points("twins") == 31
        some = Filter(must=[Between("n", lt=4)])
        assert {p.id for p in client.list_points("twins", filter=some)} == set(texts[:4])
        assert client.count_points("twins", filter=some) == 4
        assert client.delete_points("twins", filter={"n": 0}) == 1
        with pytest.raises(InvalidArgument, match="filter"):
            client.delete_points("twins", ["a"], filter={"n": 1})
        with pytest.raises(InvalidArgument):
            client.delete_points("twins", filter={})
        client.upsert("twins", [(texts[0], texts[0], {"n": 0})])
        query = Combined([texts[5], (got[1].vector, 0.5), (PointId(texts[9]), -0.8)])
        hits = client.search("twins", query, limit=31, exact=True)
        vectors = client.encode([texts[5], texts[3], texts[9], *texts])
        sums = vectors[3:] @ (vectors[0] + 0.5 * vectors[1] - 0.8 * vectors[2])
        scores = {hit.id: hit.score for hit in hits}
        assert texts[9] not in scores
        best = max((text for text in texts if text != texts[9]), key=lambda t: sums[texts.index(t)])
        assert max(texts, key=lambda text: scores.get(text, -1.0)) == best
        both = client.search("twins", [query, texts[5]], limit=2)
        assert (len(both), both[1][0].id) == (2, texts[5])
        found = client.get_collection("twins")
        assert (found.points, found.indexed_points, found.indexing) == (31, 0, False)
    async with AsyncClient(server.address) as client:
        assert await client.count_points("twins", filter=some) == 4
        assert {p.id async for p in client.list_points("twins", page_size=9)} == {*texts, "picture"}
        same = await client.get_points("twins", [texts[3]], sources=True)
        assert (same[0].id, same[0].source, same[0].vector) == (texts[3], texts[3], None)
        again = await client.search("twins", query, limit=31, exact=True)
        assert [hit.id for hit in again] == [hit.id for hit in hits]
