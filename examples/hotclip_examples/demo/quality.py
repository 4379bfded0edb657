"""Search quality as a user has it: through the server, over the whole index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import hotclip
from hotclip_examples.demo.report import SHOWN_HITS, Quality
from hotclip_examples.emoji import EmojiPair

LIMIT = 1000
"""Longest list that a search gives; a drawing beyond it counts with reciprocal rank 0."""
QUERIES_A_CALL = 64


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What the queries found: quality, rank of the right drawing and the best hits by concept."""

    quality: Quality
    ranks: Mapping[str, int | None]
    best: Mapping[str, Sequence[str]]
    version: str


def search_all(client: hotclip.Client, collection: str, queries: Sequence[EmojiPair]) -> Searched:
    """Searches for the name of each concept; right is the drawing of that concept.

    Raises RuntimeError if the answers are of several versions.
    """
    ranks: dict[str, int | None] = {}
    best: dict[str, Sequence[str]] = {}
    versions: set[str] = set()
    for start in range(0, len(queries), QUERIES_A_CALL):
        block = queries[start : start + QUERIES_A_CALL]
        texts = [query.text for query in block]
        answers = client.search(collection, texts, limit=LIMIT, exact=True)
        for query, hits in zip(block, answers, strict=True):
            codes = [hit.id for hit in hits]
            found = codes.index(query.concept) + 1 if query.concept in codes else None
            ranks[query.concept] = found
            best[query.concept] = codes[:SHOWN_HITS]
            versions.add(hits.version)
    if len(versions) != 1:
        raise RuntimeError(f"one version should have answered, but {sorted(versions)} did")
    return Searched(quality=_quality(ranks), ranks=ranks, best=best, version=versions.pop())


def _quality(ranks: Mapping[str, int | None]) -> Quality:
    found = [rank for rank in ranks.values() if rank is not None]
    total = len(ranks)
    return Quality(
        mrr=sum(1 / rank for rank in found) / total,
        hit1=sum(rank <= 1 for rank in found) / total,
        hit10=sum(rank <= 10 for rank in found) / total,
    )
