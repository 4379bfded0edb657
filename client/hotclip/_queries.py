"""Queries of a collection, and what they find."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

from hotclip._bridge import Bridge
from hotclip._bridge import bridge as parse_bridge
from hotclip._embeddings import Embeddings
from hotclip._inputs import Item, is_single, item_of, may_block
from hotclip._message import made, made_under
from hotclip._payloads import payload_out
from hotclip._points import Vector, vector_of
from hotclip._server import Limits
from hotclip.errors import Aborted, InvalidArgument
from hotclip_proto.v1 import search_pb2

MAX_QUERIES = 256
MAX_RESTARTS = 5
_MOVED = "VERSION_CHANGED"
_MESSAGE_MARGIN = 64 << 10


@dataclass(frozen=True)
class PointId:
    """Queries with the stored vector of a point; the point itself is not found."""

    id: str


@dataclass(frozen=True)
class Combined:
    """Several queries at once: hits come in the order of the weighted sum of their cosines.

    Each part is a query or (query, weight), 1 to 16 of them; a weight is 1 by default, and less
    than 0 means "unlike this". Points that are parts are not found. The score of a hit is its
    cosine to the weighted sum of the parts.
    """

    parts: Sequence[QueryPart | tuple[QueryPart, float]]


@dataclass(frozen=True)
class Hit:
    """One found point; `score` is the cosine in [-1, 1]."""

    id: str
    score: float
    payload: Mapping[str, Any]


class Hits(Sequence[Hit]):
    """What one query found, best first, and the version and space that were searched.

    `bridge` is set if the query went over it: the hits are approximate, as it says.
    """

    def __init__(
        self, hits: Iterable[Hit], version: str, space_id: str, bridge: Bridge | None = None
    ) -> None:
        self._hits = tuple(hits)
        self.version = version
        self.space_id = space_id
        self.bridge = bridge

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self._hits[index]

    def __len__(self) -> int:
        return len(self._hits)

    def __repr__(self) -> str:
        return f"Hits({list(self._hits)!r}, version={self.version!r})"


QueryPart: TypeAlias = "Item | Vector | Embeddings | PointId"
QueryLike: TypeAlias = "QueryPart | Combined"


def is_one_query(query: object) -> bool:
    """Whether this is one query rather than a list of queries."""
    if isinstance(query, Embeddings):
        return query.ndim == 1
    return isinstance(query, Vector | PointId | Combined) or is_single(query)


def query_of(value: object, where: str) -> search_pb2.Query:
    """Packs a query; reads an image."""
    if isinstance(value, PointId):
        return made_under(where, search_pb2.Query, point_id=value.id)
    if isinstance(value, Vector | Embeddings):
        return search_pb2.Query(vector=vector_of(value, where))
    if isinstance(value, Combined):
        parts = [_weighted(part, f"{where}.parts[{at}]") for at, part in enumerate(value.parts)]
        return search_pb2.Query(combination=search_pb2.Combination(parts=parts))
    return search_pb2.Query(item=item_of(value, where))


def _weighted(told: object, where: str) -> search_pb2.WeightedQuery:
    query, weight = told if isinstance(told, tuple) and len(told) == 2 else (told, 1.0)
    if isinstance(query, Combined):
        raise InvalidArgument.field(where, "a Combined within a Combined")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise InvalidArgument.field(where, f"the weight {weight!r} is no number")
    packed = query_of(query, where)
    return made_under(where, search_pb2.WeightedQuery, query=packed, weight=weight)


def _inputs(queries: Iterable[object]) -> Iterator[object]:
    """What queries are made of, but for what is a vector or stored already."""
    for query in queries:
        if isinstance(query, Combined):
            yield from _inputs(p[0] if isinstance(p, tuple) and p else p for p in query.parts)
        elif not isinstance(query, Embeddings | Vector | PointId):
            yield query


def hits(reply: search_pb2.SearchResponse) -> list[Hits]:
    """Parses the answer of Search: one Hits a query."""
    return [
        Hits(
            (Hit(h.id, h.score, payload_out(h.payload)) for h in result.hits),
            reply.version,
            reply.space_id,
            parse_bridge(reply.bridge) if reply.HasField("bridge") else None,
        )
        for result in reply.results
    ]


class SearchPlan:
    """One search call: the requests to send, one after another, and what came back."""

    def __init__(
        self,
        collection: str,
        query: object,
        *,
        limit: int,
        conditions: search_pb2.Filter | None,
        score_threshold: float | None,
        exact: bool,
        expected_space_id: str,
        bridge: bool = False,
    ) -> None:
        self._single = is_one_query(query)
        if self._single:
            self._queries: list[object] = [query]
        elif isinstance(query, Iterable):
            self._queries = list(query)
        else:
            raise InvalidArgument.field("query", f"{type(query).__name__} is no query")
        if not self._queries:
            raise InvalidArgument.field("query", "empty list")
        self._base = made(
            search_pb2.SearchRequest,
            collection=collection,
            limit=limit,
            filter=conditions,
            score_threshold=score_threshold,
            exact=exact,
            expected_space_id=expected_space_id,
            bridge=bridge,
        )
        if self._base.limit < 1:
            raise InvalidArgument.field("limit", f"{limit} is less than 1")
        self._found: list[Hits] = []
        self._restarts = 0

    @property
    def reads(self) -> bool:
        """Whether packing the queries may read files, fetch or compress."""
        return may_block(_inputs(self._queries))

    def requests(self, limits: Limits) -> Iterator[search_pb2.SearchRequest]:
        """The requests, cut by number and bytes; reads each image when its turn comes."""
        room = limits.max_message_bytes - _MESSAGE_MARGIN
        block: list[search_pb2.Query] = []
        size = 0
        for index, value in enumerate(self._queries):
            query = query_of(value, "query" if self._single else f"query[{index}]")
            bytes_ = query.ByteSize() + 16
            if block and (len(block) >= MAX_QUERIES or size + bytes_ > room):
                yield self._request(block)
                block, size = [], 0
            block.append(query)
            size += bytes_
        yield self._request(block)

    def _request(self, queries: Sequence[search_pb2.Query]) -> search_pb2.SearchRequest:
        request = search_pb2.SearchRequest()
        request.CopyFrom(self._base)
        request.queries.extend(queries)
        return request

    def add(self, reply: search_pb2.SearchResponse) -> None:
        """Takes an answer.

        Raises:
            Aborted: The collection moved to another version between two parts of a list.
        """
        fresh = hits(reply)
        if self._found and fresh and fresh[0].version != self._found[0].version:
            raise Aborted("the collection's version changed meanwhile", reason=_MOVED)
        self._found += fresh

    def restart(self, error: Aborted) -> None:
        """Starts again, so that all answers are of one version, if that is what `error` says.

        Raises:
            Aborted: `error`, if it says something else, or after MAX_RESTARTS.
        """
        if error.reason != _MOVED or self._restarts >= MAX_RESTARTS:
            raise error
        self._restarts += 1
        self._found = []

    def result(self) -> Hits | list[Hits]:
        """Hits for one query, a list of Hits for a list."""
        return self._found[0] if self._single else self._found
