"""Search: queries are encoded by the version that the collection is bound to, which is held
for the whole call, so that one answer is of one space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.drift_pb2 import Bridge
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.errors import FailedPrecondition, InvalidArgument, NotFound
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.search.encoding import ItemEncoder, Versions
from hotclip_server.search.filters import PayloadFilter
from hotclip_server.search.moment import Moment
from hotclip_server.search.points import Space
from hotclip_server.search.protocol import Match, VectorStore
from hotclip_server.search.queries import Part, combine, parse_query
from hotclip_server.search.records import CollectionRecord
from hotclip_server.search.spaces import of_space

MAX_QUERIES = 256
MAX_LIMIT = 1000
DEFAULT_LIMIT = 10

Mapped = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Vectors of one space, (n, dim), in another."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What applies to every query of a request."""

    limit: int = DEFAULT_LIMIT
    payload_filter: PayloadFilter | None = None
    score_threshold: float | None = None
    exact: bool = False
    expected_space_id: str = ""
    deadline: float | None = None
    """On time.monotonic."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Matches of each query, best first, and what encoded query and points."""

    matches: list[list[Match]]
    version: str
    space_id: str
    text_encoder_id: str
    vision_encoder_id: str
    bridge: Bridge | None = None
    """Set if queries went over it: the matches are approximate, as it says."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What queries look for: float32 (queries, dim), and points that each must not find."""

    vectors: NDArray[np.float32]
    exclude: list[list[str]]


class Searcher:
    """Searches collections. Event loop only."""

    def __init__(
        self, store: VectorStore, versions: Versions, encoder: ItemEncoder, catalogue: Catalogue
    ) -> None:
        self._store = store
        self._versions = versions
        self._encoder = encoder
        self._catalogue = catalogue

    async def search(
        self, name: str, queries: Sequence[search_pb2.Query], options: SearchOptions
    ) -> Found:
        """Finds the nearest points of each query.

        Raises:
            NotFound: no such collection or, for a query by point, no such point.
            InvalidArgument: a query; names the field.
            FailedPrecondition: reason SPACE_MISMATCH.
            HotclipError: what encoding as a whole, or the vector engine, raises.
        """
        self.check(queries, options)
        while True:
            moment = Moment(self._catalogue, self._versions, name)
            record = of_space(moment.record, options.expected_space_id, self._versions)
            if not options.expected_space_id:
                record = _of_vectors(record, queries, self._versions)
            try:
                found = await self._search(record, queries, options)
            except NotFound as error:
                # A flip put another shard in place of the one that this search had begun on.
                if error.reason != "SHARD_NOT_FOUND" or not moment.moved():
                    raise
            else:
                if moment.holds(record.version, record.shard):
                    return found

    def check(self, queries: Sequence[search_pb2.Query], options: SearchOptions) -> None:
        """Raises InvalidArgument for a wrong number of queries or hits."""
        if not 1 <= len(queries) <= MAX_QUERIES:
            raise InvalidArgument.field("queries", f"must be 1 to {MAX_QUERIES} queries")
        if not 1 <= options.limit <= MAX_LIMIT:
            raise InvalidArgument.field("limit", f"must be 1 to {MAX_LIMIT}")

    async def vectors_of(
        self,
        record: CollectionRecord,
        queries: Sequence[search_pb2.Query],
        options: SearchOptions,
        stored: Mapped | None = None,
    ) -> Wanted:
        """What queries look for, in the space of the version that `record` is bound to.

        Args:
            stored: Brings stored vectors, (n, dim), into that space; None: they are of it.
        """
        space = Space(space_id=record.space_id, dim=record.dim)
        parsed = [parse_query(query, space, f"queries[{at}]") for at, query in enumerate(queries)]
        parts = [part for query in parsed for part in query.parts]
        rows = await self._vectors(record, parts, options.deadline, stored)
        return Wanted(vectors=combine(parsed, rows), exclude=[query.point_ids for query in parsed])

    async def _search(
        self,
        record: CollectionRecord,
        queries: Sequence[search_pb2.Query],
        options: SearchOptions,
    ) -> Found:
        wanted = await self.vectors_of(record, queries, options)
        matches = await self._store.search(
            record.shard,
            wanted.vectors,
            limit=options.limit,
            payload_filter=options.payload_filter,
            score_threshold=options.score_threshold,
            exact=options.exact,
            exclude=wanted.exclude,
        )
        return Found(
            matches=matches,
            version=record.version,
            space_id=record.space_id,
            text_encoder_id=record.text_encoder_id,
            vision_encoder_id=record.vision_encoder_id,
        )

    async def _vectors(
        self,
        record: CollectionRecord,
        parts: Sequence[Part],
        deadline: float | None,
        mapped: Mapped | None,
    ) -> NDArray[np.float32]:
        """float32 (parts, dim)."""
        vectors = np.zeros((len(parts), record.dim), np.float32)
        items: dict[int, EncodeItem] = {}
        ids: dict[int, str] = {}
        for at, part in enumerate(parts):
            if part.vector is not None:
                vectors[at] = part.vector
            elif part.item is not None:
                items[at] = part.item
            else:
                ids[at] = part.point_id
        if items:
            vectors[list(items)] = await self._encode(record, parts, items, deadline)
        if ids:
            stored = await self._store.retrieve(
                record.shard, list(set(ids.values())), with_vectors=True
            )
            for at, point in ids.items():
                if point not in stored.vectors:
                    raise NotFound(
                        f"{parts[at].field}: no point {point!r} in collection {record.name!r}",
                        reason="POINT_NOT_FOUND",
                    )
                row = stored.vectors[point]
                vectors[at] = row if mapped is None else mapped(row[None])[0]
        return vectors

    async def _encode(
        self,
        record: CollectionRecord,
        parts: Sequence[Part],
        items: dict[int, EncodeItem],
        deadline: float | None,
    ) -> NDArray[np.float32]:
        with self._versions.pin(record.model, record.version) as pin:
            encoded = await self._encoder.encode_items(
                list(items.values()), pin, deadline=deadline, field="queries"
            )
        for which, error in sorted(encoded.errors.items()):
            at = list(items)[which]
            if isinstance(error, InvalidArgument):
                raise InvalidArgument.field(
                    parts[at].field, error.message, reason=error.reason
                ) from error
            raise error
        return encoded.vectors


def _of_vectors(
    record: CollectionRecord, queries: Sequence[search_pb2.Query], versions: Versions
) -> CollectionRecord:
    """As the version of the callers' own vectors has it, if there is one; else as it is, and
    parsing the vectors says what is wrong."""
    spaces = set(_spaces(queries))
    if len(spaces) != 1:
        return record
    try:
        return of_space(record, spaces.pop(), versions)
    except FailedPrecondition:
        return record


def _spaces(queries: Iterable[search_pb2.Query]) -> Iterator[str]:
    """Of the callers' own vectors."""
    for query in queries:
        if query.WhichOneof("query") == "vector":
            yield query.vector.space_id
        yield from _spaces(part.query for part in query.combination.parts)
