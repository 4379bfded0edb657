"""Points as they are stored: looked up, listed, counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from hotclip_server.errors import InvalidArgument, NotFound, ResourceExhausted
from hotclip_server.search import records
from hotclip_server.search.blobs import SourceBlobs
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.search.encoding import Versions
from hotclip_server.search.filters import PayloadFilter
from hotclip_server.search.ids import cursor_of
from hotclip_server.search.moment import Moment
from hotclip_server.search.protocol import PointMeta, ShardInfo, VectorStore
from hotclip_server.search.records import CollectionRecord, SourceRow
from hotclip_server.storage.database import Database

T = TypeVar("T")

MAX_IDS = 1000
_PAGE_BYTES = 8 << 20
"""Sources on a page of a listing, unless it is of one point."""
_ANSWER_BYTES = 64 << 20
"""Sources of one look-up."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What else than id and payload is asked for."""

    vectors: bool = False
    sources: bool = False


@dataclass(frozen=True, kw_only=True)
class ReadPoint:
    """A point; vector is float32 (dim,), source a serialised EncodeItem, both None if not asked
    for. A source is None as well if it was not kept, and while the point is being replaced."""

    id: str
    payload: dict[str, Any]
    vector: NDArray[np.float32] | None
    source: bytes | None
    reference: str = ""
    """Where the caller keeps the original; as a source it may be left out."""


@dataclass(frozen=True, kw_only=True)
class ReadPoints:
    """Points of one collection as it was, and where the listing goes on ("" after the last)."""

    points: list[ReadPoint]
    record: CollectionRecord
    following: str = ""


class Reader:
    """Reads points of collections. Event loop only."""

    def __init__(
        self,
        database: Database,
        store: VectorStore,
        versions: Versions,
        catalogue: Catalogue,
        blobs: SourceBlobs,
    ) -> None:
        self._database = database
        self._store = store
        self._versions = versions
        self._catalogue = catalogue
        self._blobs = blobs

    async def info(self, name: str) -> ShardInfo:
        """Figures of the live shard. Raises NotFound."""
        return await self._on_live_shard(name, lambda record: self._store.info(record.shard))

    async def count(self, name: str, payload_filter: PayloadFilter | None = None) -> int:
        """Points that match. Raises NotFound."""
        return await self._on_live_shard(
            name, lambda record: self._store.count(record.shard, payload_filter)
        )

    async def get(self, name: str, ids: Sequence[str], fields: Fields) -> ReadPoints:
        """Points by id in that order; unknown ones are left out.

        Raises:
            NotFound: no such collection.
            InvalidArgument: no ids, or too many.
            ResourceExhausted: the answer is too large; reason ANSWER_TOO_LARGE.
            DataLoss: a source is damaged.
        """
        if not 1 <= len(ids) <= MAX_IDS:
            raise InvalidArgument.field("ids", f"{len(ids)} ids; must be 1 to {MAX_IDS}")

        async def read(record: CollectionRecord) -> ReadPoints:
            wanted = list(dict.fromkeys(ids))
            points, left = await self._read(record, wanted, fields, _ANSWER_BYTES)
            if left:
                raise ResourceExhausted(
                    "the sources are too large for one answer; ask for fewer points",
                    reason="ANSWER_TOO_LARGE",
                )
            return ReadPoints(points=points, record=record)

        return await self._on_live_shard(name, read, vectors=fields.vectors)

    async def page(
        self,
        name: str,
        *,
        after: str,
        limit: int,
        payload_filter: PayloadFilter | None,
        fields: Fields,
        missing_sources: bool = False,
    ) -> ReadPoints:
        """A page of points; `after` is where the page before said that it goes on.

        Args:
            missing_sources: Only points without their source.

        Raises:
            NotFound: no such collection.
            DataLoss: a source is damaged.
        """

        async def read(record: CollectionRecord) -> ReadPoints:
            metas, following = await self._store.scroll(
                record.shard, after=after, limit=limit, payload_filter=payload_filter
            )
            if missing_sources and record.keep_sources:
                ids = [meta.id for meta in metas]
                given = await self._database.run(lambda c: records.given_vectors(c, name, ids))
                metas = [meta for meta in metas if meta.id in given]
            if not fields.vectors and not fields.sources:
                points = [_plain(meta) for meta in metas]
            else:
                ids = [meta.id for meta in metas]
                points, left = await self._read(record, ids, fields, _PAGE_BYTES)
                following = cursor_of(left[0]) if left else following
            return ReadPoints(points=points, record=record, following=following)

        return await self._on_live_shard(name, read, vectors=fields.vectors)

    async def _on_live_shard(
        self,
        name: str,
        read: Callable[[CollectionRecord], Awaitable[T]],
        *,
        vectors: bool = False,
    ) -> T:
        """Reads the collection as it is; again if a flip dropped its shard meanwhile or, where
        `vectors` are read, if one of them may be of another version than the collection was."""
        while True:
            moment = Moment(self._catalogue, self._versions, name)
            record = moment.record
            try:
                found = await read(record)
            except NotFound as error:
                if error.reason != "SHARD_NOT_FOUND" or not moment.moved():
                    raise
            else:
                if not vectors or moment.holds(record.version, record.shard):
                    return found

    async def _read(
        self, record: CollectionRecord, ids: Sequence[str], fields: Fields, most: int
    ) -> tuple[list[ReadPoint], Sequence[str]]:
        """Points that exist, and the ids that are left when their sources reach `most` bytes."""
        if not ids:
            return [], ()
        stored = await self._store.retrieve(
            record.shard, ids, with_vectors=fields.vectors, with_payloads=True
        )
        rows: dict[str, SourceRow] = {}
        if fields.sources and record.keep_sources:
            rows = await self._database.run(partial(_sources, record.name, ids))
        points: list[ReadPoint] = []
        size = 0
        for at, point_id in enumerate(ids):
            if point_id not in stored.revisions:
                continue
            row = rows.get(point_id)
            if row is not None and row.revision != stored.revisions[point_id]:
                row = None  # of another write
            source = await self._source(row)
            size += len(source or b"")
            if points and size > most:
                return points, ids[at:]
            points.append(
                ReadPoint(
                    id=point_id,
                    payload=stored.payloads[point_id],
                    vector=stored.vectors.get(point_id),
                    source=source,
                    reference=row.reference if row else "",
                )
            )
        return points, ()

    async def _source(self, row: SourceRow | None) -> bytes | None:
        if row is None or row.kind == "vector":
            return None
        if row.blob is None:
            return row.item
        return await asyncio.to_thread(self._blobs.get, row.blob)


def _plain(meta: PointMeta) -> ReadPoint:
    return ReadPoint(id=meta.id, payload=meta.payload, vector=None, source=None)


def _sources(collection: str, ids: Sequence[str], connection: Connection) -> dict[str, SourceRow]:
    return {row.point_id: row for row in records.sources_of(connection, collection, ids)}
