"""Points that were given as vectors get their sources from the caller, who knows where they are."""

from __future__ import annotations

import pytest

from hotclip import AsyncClient, Point
from hotclip.errors import FailedPrecondition
from hotclip_server.testing import running_server


async def test_vectors_get_their_sources_and_are_reindexed() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        await client.create_collection("given")
        texts = [f"text {i}" for i in range(5)]
        vectors = await client.encode(texts)
        points = [
            Point(f"p{i}", vectors[i], {"n": i}, reference=text) for i, text in enumerate(texts)
        ]
        await client.upsert("given", [*points, Point("t", "a text")])
        version = (await client.load_version("fake:b")).id
        with pytest.raises(FailedPrecondition, match="5 of 6 points") as refused:
            await client.reindex("given", version)
        assert refused.value.reason == "SOURCES_MISSING"
        assert refused.value.metadata["points"] == "5"

        listing = {"missing_sources": True, "sources": True, "page_size": 2}
        missing = [point async for point in client.list_points("given", **listing)]
        assert {p.id: p.reference for p in missing} == {f"p{i}": t for i, t in enumerate(texts)}
        sources = [(point.id, point.reference) for point in missing]
        late = [("t", "another"), ("gone", "nobody")]
        done = await client.upsert("given", [*sources, *late], only_missing_sources=True)
        assert done.upserted == 5
        assert [point async for point in client.list_points("given", **listing)] == []
        run = await client.reindex("given", version)
        await run.wait(30)
        await client.activate(version, collections=["given"])
        hits = await client.search("given", "text 3")
        assert (hits[0].id, hits[0].payload, hits.version) == ("p3", {"n": 3}, version)
        (stored,) = await client.get_points("given", ["p3"], sources=True)
        assert (stored.source, stored.reference) == ("text 3", "text 3")
        assert await client.count_points("given") == 6
