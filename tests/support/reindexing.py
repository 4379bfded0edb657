"""What tests of reindexing share: waiting for its job, and checking a collection of texts."""

from __future__ import annotations

import asyncio

import numpy as np
from support.search import World, text_query, text_vectors

from hotclip_server.jobs.records import JobRecord
from hotclip_server.search.searcher import SearchOptions

QUERIES = [text_query(f"query {i}") for i in range(4)]


async def ended(world: World, job: str) -> JobRecord:
    async with asyncio.timeout(60):
        async for _ in world.jobs.watch(job):
            pass
    return await world.jobs.get(job)


async def until_progress(world: World, job: str, least: float) -> None:
    async with asyncio.timeout(30):
        while (await world.jobs.get(job)).progress < least:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.02)


async def check_content(world: World, expected: dict[str, str]) -> None:
    """The collection holds exactly these texts, and search is as exact as numpy."""
    record = world.collections.catalogue.get("c")
    found = await world.collections.searcher.search(
        "c", QUERIES, SearchOptions(limit=1000, exact=True)
    )
    encoder = world.loader.encoders[record.version]
    assert found.version == record.version
    ids, texts = list(expected), list(expected.values())
    vectors = text_vectors(encoder, texts)
    for query, matches in zip(QUERIES, found.matches, strict=True):
        assert {m.id: m.payload["text"] for m in matches} == expected
        scores = vectors @ text_vectors(encoder, [query.item.text])[0]
        np.testing.assert_allclose([m.score for m in matches], np.sort(scores)[::-1], atol=1e-5)
        assert matches[0].id == ids[int(np.argmax(scores))]
