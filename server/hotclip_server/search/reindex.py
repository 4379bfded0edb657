"""Reindex: builds a shadow of a collection with another version, from the sources.

From the moment the shadow exists every write goes to both shards. The job walks the rows in
the order of their revisions and stores each in the shadow unless the shadow has that
revision already, so it may break off anywhere and go on from the start. It has caught up
when it finds no further row while no write is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from hotclip_server.batching.ticket import Priority
from hotclip_server.errors import FailedPrecondition, HotclipError, NotFound
from hotclip_server.jobs.context import Cancelled, JobContext, JobResult
from hotclip_server.jobs.records import JobKind
from hotclip_server.search import records
from hotclip_server.search.catalogue import Catalogue, new_shard, with_shadow
from hotclip_server.search.encoding import Versions
from hotclip_server.search.protocol import VectorStore
from hotclip_server.search.records import CollectionRecord, SourceRow
from hotclip_server.search.writer import Writer, to_meta
from hotclip_server.storage.database import Database

_ROWS = 64
"""Rows of one step: bounds how long a cancellation and an upsert wait."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far a reindex came."""

    revision: int
    """Rows up to here are in the shadow."""
    last_revision: int
    """Of the collection."""
    complete: bool


class Reindexer:
    """The handler of REINDEX jobs; `run` is for the job thread, all else for the event loop."""

    kind = JobKind.REINDEX

    def __init__(
        self,
        database: Database,
        store: VectorStore,
        versions: Versions,
        catalogue: Catalogue,
        writer: Writer,
    ) -> None:
        self._database = database
        self._store = store
        self._versions = versions
        self._catalogue = catalogue
        self._writer = writer
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Remembers the running loop."""
        self._loop = asyncio.get_running_loop()

    async def check(self, name: str, version: str) -> CollectionRecord:
        """Whether a collection can be reindexed for a version.

        Raises:
            NotFound: the collection, or its model has no such version.
            FailedPrecondition: points without sources (reason SOURCES_MISSING), or it is
                bound to that version already (reason ALREADY_BOUND).
        """
        record = self._catalogue.get(name)
        await self._database.run(lambda c: records.read_binding(c, record.model, version))
        if record.version == version:
            raise FailedPrecondition(
                f"collection {name!r} is bound to version {version} already",
                reason="ALREADY_BOUND",
            )
        given = await self._database.run(lambda c: records.has_kind(c, name, "vector"))
        kept = record.keep_sources or (await self._store.info(record.shard)).points == 0
        if given or not kept:
            raise FailedPrecondition(
                f"collection {name!r} has points that were stored without their source",
                reason="SOURCES_MISSING",
            )
        return record

    def run(self, job: JobContext) -> JobResult:
        """Does a job of spec {"collection", "version"}; see JobHandler."""
        name, version = str(job.spec["collection"]), str(job.spec["version"])
        if self._wait(self._begin(name, version)):
            return JobResult(message=f"{name} is bound to version {version}")
        job.running()
        step = Step(revision=0, last_revision=0, complete=False)
        try:
            while not step.complete:
                job.check_cancelled()
                step = self._wait(self._step(name, version, step.revision))
                job.progress(min(1.0, step.revision / max(1, step.last_revision)))
        except (Cancelled, HotclipError):
            if not job.stopping:
                self._wait(self._give_up(name, version))
            raise
        return JobResult(message=f"the shadow of {name} for version {version} is complete")

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise RuntimeError("reindexing is not started; this is a bug")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _begin(self, name: str, version: str) -> bool:
        """Makes the shadow, unless an earlier run of the job did; whether it is live already."""
        if self._catalogue.get(name).version == version:
            return True
        record = await self.check(name, version)
        if record.shadow_version == version:
            return False
        holder = f"shadow:{name}"
        await self._versions.bind(version, holder)
        try:
            async with self._catalogue.lock(name):
                await self._make_shadow(await self.check(name, version), version)
        except HotclipError:
            if self._catalogue.get(name).shadow_version != version:
                self._versions.release(version, holder)
            raise
        return False

    async def _make_shadow(self, record: CollectionRecord, version: str) -> None:
        name, old = record.name, record
        binding = await self._database.run(lambda c: records.read_binding(c, old.model, version))
        if record.previous_version == version:
            # Its shard is kept up anyway: it is a complete shadow.
            shard = record.previous_shard or ""

            def adopt(_: Connection, record: CollectionRecord) -> CollectionRecord:
                return replace(
                    with_shadow(record.without_previous(), version, shard), shadow_complete=True
                )

            await self._catalogue.change(name, adopt)
            return
        shard = new_shard()
        await self._store.create(shard, binding.dim)
        await self._catalogue.change(name, lambda _, r: with_shadow(r, version, shard))

    async def _step(self, name: str, version: str, revision: int) -> Step:
        record = self._shadowed(name, version)
        rows = await self._database.run(lambda c: records.sources_after(c, name, revision, _ROWS))
        shard = record.shadow_shard or ""
        stored = await self._store.retrieve(shard, [row.point_id for row in rows])
        todo = [row for row in rows if stored.revisions.get(row.point_id) != row.revision]
        vectors = await self._make_vectors(record, version, todo)
        async with self._catalogue.lock(name):
            record = self._shadowed(name, version)
            if todo:
                await self._store_current(name, record.shadow_shard or "", todo, vectors)
            reached = rows[-1].revision if rows else revision
            last = await self._database.run(lambda c: records.last_revision(c, name))
            if last > reached and rows:
                return Step(revision=reached, last_revision=last, complete=False)
            if name in self._catalogue.unsettled:
                # A write broke off: its rows are looked at once it is settled.
                self._catalogue.spawn(self._writer.settle(name))
                return Step(revision=reached, last_revision=last, complete=False)
            await self._catalogue.change(name, lambda c, r: _completed(c, r, version))
            return Step(revision=reached, last_revision=last, complete=True)

    async def _make_vectors(
        self, record: CollectionRecord, version: str, rows: list[SourceRow]
    ) -> NDArray[np.float32]:
        """float32 (rows, dim) by the new version; copied where its tower is the old one's."""
        binding = await self._database.run(lambda c: records.read_binding(c, record.model, version))
        vectors = np.zeros((len(rows), binding.dim), np.float32)
        same = {
            "text": binding.text_encoder_id == record.text_encoder_id,
            "image": binding.vision_encoder_id == record.vision_encoder_id,
            "tensor": binding.vision_encoder_id == record.vision_encoder_id,
        }
        copied = [row.point_id for row in rows if same.get(row.kind)]
        live = await self._store.retrieve(record.shard, copied, with_vectors=True)
        make: list[int] = []
        for at, row in enumerate(rows):
            if same.get(row.kind) and live.revisions.get(row.point_id) == row.revision:
                vectors[at] = live.vectors[row.point_id]
            else:
                make.append(at)
        if make:
            made, errors = await self._writer.encode_rows(
                record.model, version, [rows[at] for at in make], Priority.BULK
            )
            for which, error in errors.items():
                raise FailedPrecondition(
                    f"point {rows[make[which]].point_id!r} can't be encoded by version {version}: "
                    f"{error.message}",
                    reason="SOURCE_UNFIT",
                )
            vectors[make] = made
        return vectors

    async def _store_current(
        self, name: str, shard: str, rows: list[SourceRow], vectors: NDArray[np.float32]
    ) -> None:
        """Stores the rows that no write has replaced or removed meanwhile; under the lock."""
        ids = [row.point_id for row in rows]
        now = await self._database.run(lambda c: records.revisions_of(c, name, ids))
        keep = [at for at, row in enumerate(rows) if now.get(row.point_id) == row.revision]
        if keep:
            await self._store.upsert(shard, [to_meta(rows[at]) for at in keep], vectors[keep])

    async def _give_up(self, name: str, version: str) -> None:
        """Ends the shadow of a job that was cancelled or failed: it would hold its version and
        take part in every write for ever."""
        async with self._catalogue.lock(name):
            with suppress(NotFound):  # The collection itself was deleted.
                if self._catalogue.get(name).shadow_version == version:
                    await self._catalogue.change(name, lambda _, record: record.without_shadow())

    def _shadowed(self, name: str, version: str) -> CollectionRecord:
        record = self._catalogue.get(name)
        if record.shadow_version != version:
            raise FailedPrecondition(
                f"the shadow of collection {name!r} was given up for another version",
                reason="SHADOW_REPLACED",
            )
        return record


def _completed(connection: Connection, record: CollectionRecord, version: str) -> CollectionRecord:
    """Marks the shadow; if its version is live already, it goes live at once."""
    if record.shadow_version != version:
        return record
    live, previous = records.read_model(connection, record.model)
    if live != version:
        return replace(record, shadow_complete=True)
    flipped = record.bound_to(records.read_binding(connection, record.model, version))
    return flipped if flipped.previous_version == previous else flipped.without_previous()
