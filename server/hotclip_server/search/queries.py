"""Queries of a Search, checked: what each is made of, and how its parts become one vector."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.errors import InvalidArgument
from hotclip_server.search.points import Space, parse_vector

MAX_PARTS = 16
_CANCELLED = 1e-5
"""Length of a sum, relative to its weights, that is rounding alone."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing that a query is made of: an item, a unit vector (dim,) or a stored point."""

    field: str
    """Its path in the request."""
    weight: float
    item: EncodeItem | None = None
    vector: NDArray[np.float32] | None = None
    point_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ParsedQuery:
    """A query as its parts, one of weight 1 unless it is a combination."""

    field: str
    parts: tuple[Part, ...]

    @property
    def point_ids(self) -> list[str]:
        """Points that it is made of, which it must not find."""
        return [part.point_id for part in self.parts if part.point_id]


def parse_query(query: search_pb2.Query, space: Space, field: str) -> ParsedQuery:
    """Checks a query; `field` is its path, e.g. "queries[2]".

    Raises:
        FailedPrecondition: a vector of another space; reason SPACE_MISMATCH.
        InvalidArgument: anything else that is wrong; names the field.
    """
    if query.WhichOneof("query") != "combination":
        return ParsedQuery(field=field, parts=(_part(query, 1.0, space, field),))
    field = f"{field}.combination"
    told = query.combination.parts
    if not 1 <= len(told) <= MAX_PARTS:
        problem = f"{len(told)} parts; must be 1 to {MAX_PARTS}"
        raise InvalidArgument.field(f"{field}.parts", problem)
    parts = []
    for at, weighted in enumerate(told):
        weight = weighted.weight if weighted.HasField("weight") else 1.0
        if not math.isfinite(weight) or weight == 0:
            raise InvalidArgument.field(
                f"{field}.parts[{at}].weight", f"must be finite and not 0, is {weight}"
            )
        parts.append(_part(weighted.query, weight, space, f"{field}.parts[{at}].query"))
    return ParsedQuery(field=field, parts=tuple(parts))


def combine(queries: Sequence[ParsedQuery], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """One unit vector a query.

    The cosine of x with Σ wᵢ·vᵢ is Σ wᵢ·cos(vᵢ, x) over the length of the sum, which is the same
    for every x: hits are in the order of the weighted sum of cosines.

    Args:
        queries: Their parts in order belong to the rows of `vectors`.
        vectors: float32 (parts, dim), of unit length.

    Returns:
        float32 (queries, dim).

    Raises:
        InvalidArgument: parts that cancel each other out.
    """
    if len(queries) == len(vectors) and all(q.parts[0].weight == 1.0 for q in queries):
        return vectors
    return np.stack(
        [_sum(query, rows) for query, rows in zip(queries, _cut(queries, vectors), strict=True)]
    )


def _cut(
    queries: Sequence[ParsedQuery], vectors: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    start = 0
    for query in queries:
        yield vectors[start : start + len(query.parts)]
        start += len(query.parts)


def _sum(query: ParsedQuery, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    weights = np.array([part.weight for part in query.parts], np.float64)
    # Weights count relative to each other; as they are their products might overflow.
    weights /= np.abs(weights).max()
    total = weights @ rows.astype(np.float64)
    length = float(np.linalg.norm(total))
    if length <= _CANCELLED * float(np.abs(weights).sum()):
        raise InvalidArgument.field(f"{query.field}.parts", "cancel each other out")
    return (total / length).astype(np.float32)


def _part(query: search_pb2.Query, weight: float, space: Space, field: str) -> Part:
    kind = query.WhichOneof("query")
    if kind == "vector":
        vector = parse_vector(query.vector, space, f"{field}.vector")
        return Part(field=f"{field}.vector", weight=weight, vector=vector)
    if kind == "point_id" and query.point_id:
        return Part(field=f"{field}.point_id", weight=weight, point_id=query.point_id)
    if kind == "item" and query.item.WhichOneof("content"):
        return Part(field=f"{field}.item", weight=weight, item=query.item)
    if kind == "combination":
        raise InvalidArgument.field(field, "a combination within a combination")
    raise InvalidArgument.field(field, "must hold a query")
