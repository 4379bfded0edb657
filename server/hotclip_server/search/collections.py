"""Collections as a whole: what the parts of search are made of and how they start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager, suppress

from sqlalchemy import Connection

from hotclip_server.errors import DataLoss, FailedPrecondition, NotFound
from hotclip_server.jobs import store as job_store
from hotclip_server.jobs.records import JobKind, JobRecord
from hotclip_server.jobs.states import ACTIVE, JobState
from hotclip_server.search import blob_rows, records
from hotclip_server.search.blobs import SourceBlobs
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.search.encoding import ItemEncoder, Versions
from hotclip_server.search.filters import PayloadFilter
from hotclip_server.search.protocol import VectorStore
from hotclip_server.search.reader import Fields, Reader
from hotclip_server.search.records import CollectionRecord
from hotclip_server.search.reindex import Reindexer
from hotclip_server.search.reindex_errors import source_damaged
from hotclip_server.search.sample import ImageSampler
from hotclip_server.search.searcher import Searcher
from hotclip_server.search.sources import Sources
from hotclip_server.search.sweeping import MANY, BlobSweeper
from hotclip_server.search.writer import Writer
from hotclip_server.storage.database import Database

_log = logging.getLogger(__name__)

_GOING_ON = (ACTIVE - {JobState.CANCELLING}) | {JobState.INTERRUPTED}
_DELETED = 1000
"""Points that are looked at, and removed, at once."""


class Collections:
    """Owns the parts of search; constructing starts nothing.

    The catalogue takes part in flips: `registry.add_flip_participant(collections.catalogue)`,
    before anything is activated after `start`.

    Args:
        versions: The model registry, started before this.
        store: The vector engine, started before this.
        blobs: Large sources.
        max_collections: Most that may exist.
        max_payload_bytes: Of one point, as JSON.
        max_items: Items that the encoder takes at once.
    """

    def __init__(
        self,
        database: Database,
        store: VectorStore,
        versions: Versions,
        encoder: ItemEncoder,
        blobs: SourceBlobs,
        *,
        max_collections: int = 1000,
        max_payload_bytes: int = 64 << 10,
        max_items: int = 1024,
    ) -> None:
        self._database = database
        self._store = store
        self._blobs = blobs
        self.catalogue = Catalogue(database, store, versions, max_collections=max_collections)
        self.sources = sources = Sources(versions, encoder, blobs, max_items=max_items)
        self._sweeper = BlobSweeper(database, blobs, self.catalogue.spawn)
        self.writer = Writer(
            database,
            store,
            versions,
            encoder,
            self.catalogue,
            sources,
            self._sweeper,
            max_payload_bytes=max_payload_bytes,
        )
        self.searcher = Searcher(store, versions, encoder, self.catalogue)
        self.reader = Reader(database, store, versions, self.catalogue, blobs)
        self.reindexer = Reindexer(database, store, versions, self.catalogue, self.writer, sources)
        self.sampler = ImageSampler(database, blobs)

    async def start(self) -> None:
        """Makes bound versions resident, and shards agree with what SQLite says."""
        used = await self._database.run(blob_rows.used)
        await asyncio.to_thread(self._blobs.sweep, used)
        await self._database.run(_give_up_shadows)
        await self.catalogue.open()
        for record in self.catalogue.list():
            try:
                await self.writer.settle(record.name)
            except Exception:  # noqa: BLE001 - also of the database, whose disk may be full
                _log.exception("collection %s: some points may be missing", record.name)
                self.writer.settle_later(record.name)
        self.reindexer.start()

    async def stop(self) -> None:
        """Ends background work; before the store, the registry and the database stop."""
        await self.catalogue.close()

    async def sweep_shadows(self) -> None:
        """Ends growing shadows that no job will complete: of one that was cancelled before it
        went on, or forgotten. They would hold their version and take part in every write."""
        for name in await self._database.run(_orphans):
            with suppress(NotFound):  # Deleted meanwhile.
                async with self.catalogue.lock(name):
                    await self.catalogue.change(name, _without_orphan)

    async def delete(self, name: str) -> None:
        """Removes a collection with its points. Raises NotFound."""
        kept = self.catalogue.get(name).keep_sources
        try:
            await self.catalogue.delete(name)
        finally:
            self._sweeper.released(MANY if kept else 0)

    async def drop_shadow(self, name: str, version: str) -> CollectionRecord:
        """Gives up a shadow that is complete, or that no job builds; the collection as it is then.

        Raises:
            NotFound: the collection, or it has no shadow for `version`; reason SHADOW_NOT_FOUND.
            FailedPrecondition: a job builds it; reason SHADOW_GROWS, metadata: its id as `job`.
        """

        def drop(connection: Connection, record: CollectionRecord) -> CollectionRecord:
            if record.shadow_version != version:
                raise _no_such_shadow(record, version)
            building = _reindexing(connection, ACTIVE, name, version)
            if not record.shadow_complete and building:
                raise FailedPrecondition(
                    f"job {building[0].name!r} builds the shadow of collection {name!r}: cancel "
                    "it (CancelJob), and no shadow stays",
                    reason="SHADOW_GROWS",
                    metadata={"job": building[0].id},
                )
            return record.without_shadow()

        async with self.catalogue.lock(name):
            return await self.catalogue.change(name, drop)

    @asynccontextmanager
    async def naming_damage(self, name: str) -> AsyncIterator[None]:
        """An error of a source that is lost says which points of the collection were made of it."""
        try:
            yield
        except DataLoss as error:
            if (blob := error.metadata.get("blob")) is None:
                raise
            ids = await self._database.run(lambda c: blob_rows.points_of(c, name, blob))
            if not ids:
                raise
            raise source_damaged(dict.fromkeys(ids, error)) from error

    async def count(self, name: str) -> int:
        """Points of a collection. Raises NotFound."""
        return await self.reader.count(name)

    async def delete_matching(self, name: str, payload_filter: PayloadFilter) -> int:
        """Removes the points that match when they are looked at; returns how many.

        Raises:
            NotFound: no such collection.
        """
        deleted, after = 0, ""
        while True:
            page = await self.reader.page(
                name, after=after, limit=_DELETED, payload_filter=payload_filter, fields=Fields()
            )
            if page.points:
                deleted += await self.writer.delete(name, [point.id for point in page.points])
            after = page.following
            if not after:
                return deleted


def _reindexing(
    connection: Connection, states: Set[JobState], collection: str, version: str
) -> list[JobRecord]:
    """Jobs that make a collection's vectors anew for a version."""
    return [
        job
        for job in job_store.in_states(connection, states)
        if job.kind is JobKind.REINDEX
        and (job.spec["collection"], job.spec["version"]) == (collection, version)
    ]


def _no_such_shadow(record: CollectionRecord, version: str) -> NotFound:
    other = f"; it has one for {record.shadow_version}" if record.shadow_version else ""
    return NotFound(
        f"collection {record.name!r} has no shadow for version {version}{other}",
        reason="SHADOW_NOT_FOUND",
    )


def _without_orphan(connection: Connection, record: CollectionRecord) -> CollectionRecord:
    """Without a growing shadow that no job will complete, e.g. of one cancelled in the queue."""
    if record.shadow_version is None or record.shadow_complete:
        return record
    wanted = _reindexing(connection, _GOING_ON, record.name, record.shadow_version)
    return record if wanted else record.without_shadow()


def _orphans(connection: Connection) -> list[str]:
    found = records.read_all(connection)
    return [record.name for record in found if _without_orphan(connection, record) != record]


def _give_up_shadows(connection: Connection) -> None:
    for name in _orphans(connection):
        record = records.read(connection, name)
        records.update(connection, _without_orphan(connection, record))
