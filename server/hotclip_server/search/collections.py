"""Collections as a whole: what the parts of search are made of and how they start."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from sqlalchemy import Connection

from hotclip_server.errors import HotclipError, NotFound
from hotclip_server.jobs import store as job_store
from hotclip_server.jobs.records import JobKind
from hotclip_server.jobs.states import ACTIVE, JobState
from hotclip_server.search import records
from hotclip_server.search.blobs import SourceBlobs
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.search.encoding import ItemEncoder, Versions
from hotclip_server.search.filters import PayloadFilter
from hotclip_server.search.protocol import VectorStore
from hotclip_server.search.reader import Fields, Reader
from hotclip_server.search.records import CollectionRecord
from hotclip_server.search.reindex import Reindexer
from hotclip_server.search.sample import ImageSampler
from hotclip_server.search.searcher import Searcher
from hotclip_server.search.sources import Sources
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
        self.writer = Writer(
            database,
            store,
            versions,
            encoder,
            self.catalogue,
            sources,
            max_payload_bytes=max_payload_bytes,
        )
        self.searcher = Searcher(store, versions, encoder, self.catalogue)
        self.reader = Reader(database, store, versions, self.catalogue, blobs)
        self.reindexer = Reindexer(database, store, versions, self.catalogue, self.writer, sources)
        self.sampler = ImageSampler(database, blobs)

    async def start(self) -> None:
        """Makes bound versions resident, and shards agree with what SQLite says."""
        used = await self._database.run(records.used_blobs)
        await asyncio.to_thread(self._blobs.sweep, used)
        await self._database.run(_give_up_shadows)
        await self.catalogue.open()
        for record in self.catalogue.list():
            try:
                await self.writer.settle(record.name)
            except HotclipError:
                _log.exception("collection %s: some points may be missing", record.name)
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


def _wanted(connection: Connection) -> set[tuple[str, str]]:
    """Collections and versions of the reindexing that goes on, or may."""
    going_on = job_store.in_states(connection, _GOING_ON)
    jobs = [job for job in going_on if job.kind is JobKind.REINDEX]
    return {(job.spec["collection"], job.spec["version"]) for job in jobs}


def _without_orphan(connection: Connection, record: CollectionRecord) -> CollectionRecord:
    """Without a growing shadow that no job will complete, e.g. of one cancelled in the queue."""
    if record.shadow_version is None or record.shadow_complete:
        return record
    wanted = (record.name, record.shadow_version) in _wanted(connection)
    return record if wanted else record.without_shadow()


def _orphans(connection: Connection) -> list[str]:
    found = records.read_all(connection)
    return [record.name for record in found if _without_orphan(connection, record) != record]


def _give_up_shadows(connection: Connection) -> None:
    for name in _orphans(connection):
        record = records.read(connection, name)
        records.update(connection, _without_orphan(connection, record))
