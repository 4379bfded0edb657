"""Upsert and Delete: one write goes to SQLite, then to every shard, then is acknowledged.

Order, and what a crash leaves: (1) the source rows commit with fresh revisions (a deletion:
tombstones); (2) each shard stores the vectors under the same revisions (or removes them);
(3) the caller hears of it; (4) tombstones go once the shards are flushed. Writes of a collection
come one after the other, so a shard lacks at most the rows with the greatest revisions: `settle`
finds and stores them when the server starts, and after a write that failed in between. One that a
shard refused, for its disk is full, is taken back; if that fails too, it stays in the rows, and is
stored later. Without sources there are no rows: the shard is the truth, and a write that broke off
may be in one of two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from hotclip_proto.v1 import search_pb2
from hotclip_server.errors import FailedPrecondition, HotclipError, ResourceExhausted
from hotclip_server.search import blob_rows, records
from hotclip_server.search.blobs import BlobHold
from hotclip_server.search.catalogue import FLIP_POLL_S, Catalogue
from hotclip_server.search.encoding import ItemEncoder, Versions
from hotclip_server.search.points import NewPoint, Space, parse_points
from hotclip_server.search.protocol import PointMeta, VectorStore
from hotclip_server.search.records import CollectionRecord, SourceRow
from hotclip_server.search.settling import Settler
from hotclip_server.search.sources import Sources
from hotclip_server.search.sweeping import BlobSweeper
from hotclip_server.storage.database import Database

Vectors = dict[str, NDArray[np.float32]]
"""float32 (points, dim) by version."""


@dataclass(frozen=True, kw_only=True)
class Upserted:
    """What came of an Upsert."""

    stored: int
    errors: dict[int, HotclipError]
    version: str
    space_id: str
    text_encoder_id: str
    vision_encoder_id: str


class Writer:
    """Writes points of collections. Event loop only."""

    def __init__(
        self,
        database: Database,
        store: VectorStore,
        versions: Versions,
        encoder: ItemEncoder,
        catalogue: Catalogue,
        sources: Sources,
        sweeper: BlobSweeper,
        *,
        max_payload_bytes: int = 64 << 10,
    ) -> None:
        self._database = database
        self._store = store
        self._versions = versions
        self._encoder = encoder
        self._catalogue = catalogue
        self._sources = sources
        self._sweeper = sweeper
        self._settler = Settler(database, store, catalogue, sources)
        self._max_payload_bytes = max_payload_bytes

    async def upsert(
        self,
        name: str,
        points: Sequence[search_pb2.Point],
        *,
        only_missing_sources: bool = False,
        deadline: float | None = None,
    ) -> Upserted:
        """Encodes and stores points; durable when it returns.

        Args:
            only_missing_sources: Stores only what replaces a point that was given as a vector;
                its payload and reference stay.

        Raises:
            NotFound: no such collection.
            FailedPrecondition: a vector of another space; reason SPACE_MISMATCH. Sources for a
                collection that keeps none; reason SOURCES_NOT_KEPT.
            ResourceExhausted: the disk is full; reason DISK_FULL. As a rule nothing is stored. If
                the collection keeps no sources, a part of the points may be. If a shard refused
                them after their rows were committed and the rows could not be put back (the
                database's disk may be as full), all of them are stored as soon as there is room,
                although they were refused.
            HotclipError: what encoding as a whole, or the vector engine, raises.
        """
        with self._sources.holding() as hold:
            try:
                return await self._upsert(name, points, hold, only_missing_sources, deadline)
            except BaseException:
                hold.stored.clear()  # Perhaps: they are looked for.
                raise
            finally:
                self._sweeper.released(len(hold.names - hold.stored))

    async def _upsert(
        self,
        name: str,
        points: Sequence[search_pb2.Point],
        hold: BlobHold,
        only_missing_sources: bool,
        deadline: float | None,
    ) -> Upserted:
        while True:
            record = self._catalogue.get(name)
            if only_missing_sources and not record.keep_sources:
                raise FailedPrecondition(
                    f"collection {name!r} keeps no sources", reason="SOURCES_NOT_KEPT"
                )
            space = Space(space_id=record.space_id, dim=record.dim)
            good, errors = await asyncio.to_thread(
                parse_points, points, space, self._max_payload_bytes
            )
            if only_missing_sources or len(record.targets()) > 1:
                good = _without_vectors(good, errors)
            if good:  # Before anything is encoded, or written to files.
                await self._store.require_room(4 * len(good) * record.dim * len(record.targets()))
            record, vectors = await self._encode(record, good, errors, deadline)
            rows: list[SourceRow] = []
            if record.keep_sources:
                rows = await asyncio.to_thread(self._sources.rows_of, good, hold)
            async with self._catalogue.lock(name):
                now = self._catalogue.get(name)
                if not _same(record, now, vectors):
                    continue  # A flip or a shadow came in between, or another collection.
                keep = _last_of_each(good, errors)
                count = len(points) - len(errors)
                if only_missing_sources:
                    keep = await self._lacking(name, good, rows, keep)
                    count = len(keep)
                if keep:
                    stored = await self._store_points(
                        now,
                        [good[at] for at in keep],
                        [rows[at] for at in keep] if rows else [],
                        {version: matrix[keep] for version, matrix in vectors.items()},
                        hold,
                    )
                    if not stored:
                        continue  # A flip came in between.
                return Upserted(
                    stored=count,
                    errors=errors,
                    version=now.version,
                    space_id=now.space_id,
                    text_encoder_id=now.text_encoder_id,
                    vision_encoder_id=now.vision_encoder_id,
                )

    async def delete(self, name: str, ids: Sequence[str]) -> int:
        """Removes points; returns how many there were. Raises NotFound (the collection)."""
        self._catalogue.get(name)
        ids = list(dict.fromkeys(ids))
        async with self._catalogue.lock(name):
            record = self._catalogue.get(name)
            with suppress(ResourceExhausted):  # Removing makes room, and needs none.
                await self._settler.settle(record)
            revision = await self._catalogue.next_revisions(name, 1)

            def mark(connection: Connection) -> int:
                blobs = blob_rows.count_of(connection, name, ids)
                records.mark_deleted(connection, name, ids, revision)
                return blobs

            async def write() -> int:
                if record.keep_sources:
                    self._sweeper.released(await self._database.run(mark))
                return await self._settler.delete_vectors(record, ids)

            return await self._settler.guard(record, write())

    async def settle(self, name: str) -> None:
        """Makes the shards agree with the source rows, if a crash may have left them apart."""
        async with self._catalogue.lock(name):
            await self._settler.settle(self._catalogue.get(name))

    def settle_later(self, name: str) -> None:
        """As `settle`, in the background, until that succeeds."""
        self._settler.settle_later(name)

    async def _lacking(
        self, name: str, points: list[NewPoint], rows: list[SourceRow], keep: Sequence[int]
    ) -> list[int]:
        """Those of `keep` that a source is missing of, with the payload and reference they have."""
        ids = [points[at].id for at in keep]
        given = await self._database.run(lambda c: records.given_vectors(c, name, ids))
        lacking = [at for at in keep if points[at].id in given]
        for at in lacking:
            row = given[points[at].id]
            kept: dict[str, Any] = {"payload": row.payload, "reference": row.reference}
            points[at] = replace(points[at], **kept)
            rows[at] = replace(rows[at], **kept)
        return lacking

    async def _encode(
        self,
        record: CollectionRecord,
        points: Sequence[NewPoint],
        errors: dict[int, HotclipError],
        deadline: float | None,
    ) -> tuple[CollectionRecord, Vectors]:
        """Vectors of the points by each version that the collection writes for."""
        items = [(at, point.item) for at, point in enumerate(points) if point.item is not None]
        vectors: Vectors = {}
        for version in record.targets():
            try:
                pin = await self._sources.pin(record.model, version)
            except HotclipError:
                if version != record.previous_version:
                    raise
                record = await self._settler.forget_previous(record.name, version)
                continue
            with pin:
                matrix = np.zeros((len(points), pin.resident.spec.dim), np.float32)
                if items:
                    encoded = await self._encoder.encode_items(
                        [item for _, item in items], pin, deadline=deadline, field="points"
                    )
                    matrix[[at for at, _ in items]] = encoded.vectors
                    for which, error in encoded.errors.items():
                        errors[points[items[which][0]].index] = error
            vectors[version] = matrix
        for at, point in enumerate(points):
            if point.vector is not None:
                vectors[record.version][at] = point.vector
        return record, vectors

    async def _store_points(
        self,
        record: CollectionRecord,
        points: Sequence[NewPoint],
        rows: Sequence[SourceRow],
        vectors: Vectors,
        hold: BlobHold,
    ) -> bool:
        """False, and nothing is stored, if the collection was bound to another version meanwhile
        and held nothing of the kind of these points before: they are of the old one."""
        await self._settler.settle(record)
        nbytes = sum(matrix.nbytes for matrix in vectors.values())
        await self._store.require_room(nbytes + sum(len(row.item or b"") for row in rows))
        first = await self._catalogue.next_revisions(record.name, len(points))
        metas = [PointMeta(p.id, first + at, p.payload) for at, p in enumerate(points)]
        stamped = [_with_revision(row, first + at) for at, row in enumerate(rows)]

        async def write() -> bool:
            replaced = await self._note(record, {point.kind for point in points}, stamped, hold)
            if replaced is None:
                return False
            try:
                for version, shard in record.targets().items():
                    with self._settler.unless_dropped(record.name, shard):
                        await self._store.upsert(shard, metas, vectors[version])
            except ResourceExhausted:
                await self._settler.take_back(record, [row.point_id for row in rows], replaced)
                raise
            return True

        return await self._settler.guard(record, write())

    async def _note(
        self, record: CollectionRecord, kinds: set[str], rows: Sequence[SourceRow], hold: BlobHold
    ) -> list[SourceRow] | None:
        """Commits rows, and which kinds of points the collection holds: whether it follows a
        version is decided by that. Returns the rows that were replaced; None as False of
        `_store_points`."""
        replaced: list[SourceRow] = []

        def put(connection: Connection) -> None:
            if rows:
                ids = [row.point_id for row in rows]
                replaced[:] = records.sources_of(connection, record.name, ids)
                # The write may be taken back.
                hold.keep(row.blob for row in replaced if row.blob)
                hold.stored |= {row.blob for row in rows if row.blob}
                records.put_sources(connection, record.name, rows)

        if record.holding(kinds) == record:
            if rows:
                await self._database.run(put)
            return replaced

        def grow(connection: Connection, now: CollectionRecord) -> CollectionRecord:
            put(connection)
            return records.update(connection, now.holding(kinds))

        while await self._catalogue.commit(record, grow) is None:
            await asyncio.sleep(FLIP_POLL_S)
            now = self._catalogue.get(record.name)
            if now.version != record.version or now.targets() != record.targets():
                return None
            record = now
        return replaced


def _same(before: CollectionRecord, now: CollectionRecord, vectors: Vectors) -> bool:
    """Whether `vectors`, made for the collection as it was, are what it stores now. One that was
    deleted and made anew has another shard."""
    return (now.version, now.shard) == (before.version, before.shard) and set(now.targets()) == set(
        vectors
    )


def _last_of_each(points: Sequence[NewPoint], errors: Mapping[int, HotclipError]) -> list[int]:
    """Positions of the points without an error, of several with the same id the last."""
    good = (at for at, point in enumerate(points) if point.index not in errors)
    return sorted({points[at].id: at for at in good}.values())


def _with_revision(row: SourceRow, revision: int) -> SourceRow:
    return replace(row, revision=revision)


def _without_vectors(points: Sequence[NewPoint], errors: dict[int, HotclipError]) -> list[NewPoint]:
    """Refuses given vectors while two versions need every point."""
    for point in points:
        if point.vector is not None:
            errors[point.index] = FailedPrecondition(
                "must hold an item: a vector is no source, and where two versions are kept (a "
                "shadow, which DropShadow gives up, or a rollback target, which UnloadVersion "
                "does) it is of one of them",
                reason="SOURCE_NEEDED",
            )
    return [point for point in points if point.vector is None]
