"""Rank requests and what they answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hotclip._embeddings import Timings
from hotclip._encoding import PriorityName, TruncateName, priority_of, truncation_of
from hotclip._inputs import is_single, item_of
from hotclip._message import made
from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import encode_pb2


@dataclass(frozen=True)
class RankScore:
    """How well one candidate fits.

    `index` is its position in the caller's list, `cosine` in [-1, 1], `probability` sums
    to 1 over the candidates.
    """

    index: int
    cosine: float
    probability: float


@dataclass(frozen=True)
class Ranking:
    """Scores, best first, the version that gave them, and where the time went."""

    scores: tuple[RankScore, ...]
    version: str
    space_id: str
    timings: Timings


def rank_request(
    query: object,
    candidates: Sequence[object],
    *,
    model: str,
    version: str,
    expected_space_id: str,
    truncate: TruncateName,
    priority: PriorityName,
) -> encode_pb2.RankRequest:
    """Packs a query and its candidates; reads images."""
    if is_single(candidates) or not isinstance(candidates, Iterable):
        kind = type(candidates).__name__
        raise InvalidArgument.field("candidates", f"{kind} is no list of items")
    listed = list(candidates)
    if not listed:
        raise InvalidArgument.field("candidates", "empty list")
    return made(
        encode_pb2.RankRequest,
        query=item_of(query, "query"),
        candidates=[item_of(c, f"candidates[{i}]") for i, c in enumerate(listed)],
        model=model,
        version=version,
        expected_space_id=expected_space_id,
        truncate=truncation_of(truncate),
        priority=priority_of(priority),
    )


def ranking(reply: encode_pb2.RankResponse) -> Ranking:
    """Parses the answer of Rank."""
    return Ranking(
        tuple(RankScore(s.index, s.cosine, s.probability) for s in reply.scores),
        reply.version,
        reply.space_id,
        Timings().plus(reply.timings),
    )
