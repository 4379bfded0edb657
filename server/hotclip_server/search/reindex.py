"""Reindex: builds a shadow of a collection with another version, from the sources.

From the moment the shadow exists every write goes to both shards. The job walks the rows in
the order of their revisions and stores each in the shadow unless the shadow has that
revision already, so it may break off anywhere and go on; now and then it notes how far it
came, and after a restart begins there. What writers stored in both it passes over by revisions
alone, without reading sources. It has caught up when, while no write is under way, it finds
no row that the shadow lacks. A collection of whose vectors the version changes none has
no shadow: it is bound to that version as it is (`Catalogue.flip`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from hotclip_server.errors import FailedPrecondition, NotFound, Unavailable
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.records import JobKind
from hotclip_server.search import records
from hotclip_server.search.catalogue import Catalogue, new_shard, with_shadow
from hotclip_server.search.encoding import Versions
from hotclip_server.search.protocol import VectorStore
from hotclip_server.search.records import Binding, CollectionRecord, SourceRow
from hotclip_server.search.reindex_errors import MOST_NAMED, sources_missing
from hotclip_server.search.shadows import completed_shadow, shadow_vectors
from hotclip_server.search.sources import Sources, to_meta
from hotclip_server.search.writer import Writer
from hotclip_server.storage.database import Database

_ROWS = 64
"""Rows that one step encodes: bounds how long a cancellation and an upsert wait."""
_LOOK_ROWS, _LOOKS = 256, 16
"""Rows looked for in the shadow at once, which other requests of the store wait for, and how
often in a step, which upserts wait for."""
_ROWS_TO_NOTE = 1024
"""Rows after which the job notes how far it came."""
_PATIENCE_S = 3600.0
"""How long nothing may come of a step, and after which part of that people are told."""
_SILENCE_S = 10.0
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far a reindex came."""

    revision: int = 0
    """Rows up to here are in the shadow."""
    last_revision: int = 0
    """Of the collection."""
    ended: str = ""
    """How it ended, for people; empty: it goes on."""


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
        sources: Sources,
    ) -> None:
        self._database = database
        self._store = store
        self._versions = versions
        self._catalogue = catalogue
        self._writer = writer
        self._sources = sources
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Remembers the running loop."""
        self._loop = asyncio.get_running_loop()

    async def check(self, name: str, version: str) -> CollectionRecord:
        """Whether a collection can be reindexed for a version.

        Raises:
            NotFound: the collection, or its model has no such version.
            FailedPrecondition: points without sources whose vectors the version changes (reason
                SOURCES_MISSING; metadata: how many `points`, and `ids` of the first ones as
                JSON), or it is bound to that version already (reason ALREADY_BOUND).
        """
        if (record := await self._unbound(name, version)) is None:
            raise FailedPrecondition(
                f"collection {name!r} is bound to version {version} already",
                reason="ALREADY_BOUND",
            )
        return record

    async def _unbound(self, name: str, version: str) -> CollectionRecord | None:
        """As `check`; None if it is bound to the version already."""
        record = await self._emptied(self._catalogue.get(name))
        binding = await self._binding(record, version)
        if record.version == version:
            return None
        # A shadow that has begun was given whatever was written since, with or without a source.
        if record.shadow_version != version and not self._as_it_is(record, binding):
            await self._check_sources(record)
        return record

    def run(self, job: JobContext) -> JobResult:
        """Does a job of spec {"collection", "version"}; see JobHandler."""
        name, version = str(job.spec["collection"]), str(job.spec["version"])
        try:
            step = self._patiently(job, partial(self._begin, name, version))
            if not step.ended:
                step = self._walk(job, name, version, step)
        except Exception:
            # Raised again: whatever ended it, writes must not go to a shadow that nobody completes.
            if not job.stopping:
                self._wait(self._give_up(name, version))
            raise
        return JobResult(message=step.ended)

    def _walk(self, job: JobContext, name: str, version: str, step: Step) -> Step:
        job.running()
        noted = step.revision
        if noted:
            job.resumed(noted)
        while True:
            step = self._patiently(job, partial(self._step, name, version, step.revision))
            job.progress(min(1.0, step.revision / max(1, step.last_revision)))
            if step.ended:
                return step
            if step.revision >= noted + _ROWS_TO_NOTE:
                noted = step.revision
                self._patiently(job, partial(self._note, name, version, noted))
                job.checkpoint(step=noted, size_bytes=0, best=False)

    def _patiently(self, job: JobContext, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Does work again and again while the encoder or the vector store is away: what was made
        so far is worth waiting."""
        since: float | None = None
        told = False
        while True:
            job.check_cancelled()
            try:
                return self._wait(work())
            except Unavailable as error:
                now = time.monotonic()
                since = now if since is None else since
                if now - since > _PATIENCE_S:
                    raise
                if now - since > _SILENCE_S and not told:
                    job.log(f"waits: {error.message}", "WARNING")
                    told = True
                time.sleep(min(max(error.retry_after_s, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise RuntimeError("reindexing is not started; this is a bug")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _binding(self, record: CollectionRecord, version: str) -> Binding:
        return await self._database.run(lambda c: records.read_binding(c, record.model, version))

    def _as_it_is(self, record: CollectionRecord, binding: Binding) -> bool:
        """Whether no vector has to be made: it follows when the version goes live, or the version
        is live and it was left behind."""
        live = self._versions.model_state(record.model).live_version
        return live in (record.version, binding.version) and record.unchanged_by(binding)

    async def _emptied(self, record: CollectionRecord) -> CollectionRecord:
        """Without sources, an empty collection holds nothing that a version could change."""
        if record.keep_sources or (await self._store.info(record.shard)).points:
            return record
        return record.with_sides((False, False, False))

    async def _check_sources(self, record: CollectionRecord) -> None:
        name, total = record.name, (await self._store.info(record.shard)).points
        if record.keep_sources:
            missing, ids = 0, list[str]()
            if record.has_vectors:
                missing, ids = await self._database.run(
                    lambda c: records.without_source(c, name, MOST_NAMED)
                )
            what = "were given as vectors: upsert them as texts or images"
        else:
            missing = total
            page, _ = await self._store.scroll(record.shard, limit=MOST_NAMED)
            ids = sorted(point.id for point in page)
            what = "have no source, as the collection was made with keep_sources false"
        if missing:
            raise sources_missing(name, total, missing, ids, what)

    async def _begin(self, name: str, version: str) -> Step:
        """Makes the shadow, unless an earlier run of the job did. That the collection is bound to
        the version was refused when the job was asked for; a flip may have done it since."""
        if (record := await self._unbound(name, version)) is None:
            return _is_bound(name, version)
        binding = await self._binding(record, version)
        if self._as_it_is(record, binding):
            return await self._leave(name, binding)
        if record.shadow_version == version:
            live = self._versions.model_state(record.model).live_version
            if record.shadow_complete and live != version:
                return Step(ended=f"the shadow of {name} for version {version} is complete")
            return Step(revision=record.shadow_revision)
        holder = f"shadow:{name}"
        await self._versions.bind(version, holder)
        try:
            async with self._catalogue.lock(name):
                if (record := await self._unbound(name, version)) is not None:
                    await self._make_shadow(record, binding)
        finally:
            if not self._is_shadowed(name, version):
                self._versions.release(version, holder)
        if self._is_shadowed(name, version):
            return Step()
        return await self._begin(name, version)  # A flip came in between.

    def _bound(self, name: str, version: str) -> Step | None:
        if self._catalogue.get(name).version != version:
            return None
        return _is_bound(name, version)

    async def _leave(self, name: str, binding: Binding) -> Step:
        """Nothing is encoded; one that was left behind catches up with the live version."""
        version = binding.version
        async with self._catalogue.lock(name):
            sides = (await self._emptied(self._catalogue.get(name))).sides

            def leave(connection: Connection, record: CollectionRecord) -> CollectionRecord:
                record = record.with_sides(sides)
                live, _ = records.read_model(connection, record.model)
                if live == version and record.unchanged_by(binding):
                    return record.followed_to(binding)
                return record.without_shadow() if record.shadow_version == version else record

            await self._catalogue.change(name, leave)
        if (ended := self._bound(name, version)) is not None:
            return ended
        if not self._as_it_is(self._catalogue.get(name), binding):
            return await self._begin(name, version)  # A flip or a write came in between.
        return Step(
            ended=f"{name} holds nothing that version {version} encodes otherwise: it goes live "
            "with it as it is"
        )

    async def _make_shadow(self, record: CollectionRecord, binding: Binding) -> None:
        """Under the lock, which a flip does not wait for: none is made if the collection is not
        what it was any more."""
        name, version = record.name, binding.version
        if record.previous_version == version:
            # Its shard is kept up anyway: it is a complete shadow.
            shard = record.previous_shard or ""

            def adopt(_: Connection, record: CollectionRecord) -> CollectionRecord:
                if record.previous_shard != shard:
                    return record
                return replace(
                    with_shadow(record.without_previous(), version, shard), shadow_complete=True
                )

            await self._catalogue.change(name, adopt)
            return

        def begin(_: Connection, record: CollectionRecord) -> CollectionRecord:
            # A version has one shard.
            return record if version in record.targets() else with_shadow(record, version, shard)

        shard = new_shard()
        await self._store.create(shard, binding.dim)
        now = await self._catalogue.change(name, begin)
        if shard not in now.targets().values():
            await self._store.drop(shard)

    async def _step(self, name: str, version: str, revision: int) -> Step:
        if (ended := self._bound(name, version)) is not None:
            return ended
        record = self._shadowed(name, version)
        shard = record.shadow_shard or ""
        began = await self._database.run(lambda c: records.last_revision(c, name))
        # No lock is needed: revisions commit in order, and a replaced row gets a greater one.
        reached, _ = await self._look_on(name, shard, revision, _LOOKS)
        rows = await self._database.run(lambda c: records.sources_after(c, name, reached, _ROWS))
        stored = await self._store.retrieve(shard, [row.point_id for row in rows])
        todo = [row for row in rows if stored.revisions.get(row.point_id) != row.revision]
        binding = await self._binding(record, version)
        vectors = await shadow_vectors(self._store, self._sources, record, binding, todo)
        async with self._catalogue.lock(name):
            if (ended := self._bound(name, version)) is not None:
                return ended
            before, record = record, self._shadowed(name, version)
            last = await self._database.run(lambda c: records.last_revision(c, name))
            if before.version != record.version:
                # Vectors may have been copied from a shard that was another version's.
                return Step(revision=reached, last_revision=last)
            if todo:
                await self._store_current(name, record.shadow_shard or "", todo, vectors)
            done = rows[-1].revision if rows else reached
            # What was written meanwhile went to the shadow too. Looking at as many rows and more,
            # the job gains on any number of writers.
            looks = _LOOKS + (last - began) // _LOOK_ROWS
            done, complete = await self._look_on(name, record.shadow_shard or "", done, looks)
            if not complete:
                return Step(revision=done, last_revision=last)
            if name in self._catalogue.unsettled:
                # A write broke off: its rows are looked at once it is settled.
                self._catalogue.spawn(self._writer.settle(name))
                return Step(revision=done, last_revision=last)
            await self._store.flush(record.shadow_shard or "")
            await self._catalogue.change(name, lambda c, r: completed_shadow(c, r, version))
            return Step(
                revision=done,
                last_revision=last,
                ended=f"the shadow of {name} for version {version} is complete",
            )

    async def _look_on(self, name: str, shard: str, revision: int, looks: int) -> tuple[int, bool]:
        """How far the shadow has what its writers gave it, and whether that is all; at most
        `looks` times _LOOK_ROWS rows."""
        for _ in range(looks):
            read = partial(
                records.revisions_after, collection=name, revision=revision, limit=_LOOK_ROWS
            )
            rows = await self._database.run(read)
            stored = await self._store.retrieve(shard, list(rows))
            for point, at in rows.items():
                if stored.revisions.get(point) != at:
                    return revision, False
                revision = at
            if len(rows) < _LOOK_ROWS:
                return revision, True
        return revision, False

    async def _note(self, name: str, version: str, revision: int) -> None:
        """Rows up to `revision` need not be looked at again."""
        # First on the disk: the row that says so outlives a loss of power.
        await self._store.flush(self._shadowed(name, version).shadow_shard or "")

        def note(_: Connection, record: CollectionRecord) -> CollectionRecord:
            ours = record.shadow_version == version
            return replace(record, shadow_revision=revision) if ours else record

        await self._catalogue.change(name, note)

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
                record = self._catalogue.get(name)
                if record.shadow_version == version and not record.shadow_complete:
                    await self._catalogue.change(name, lambda _, record: record.without_shadow())

    def _is_shadowed(self, name: str, version: str) -> bool:
        with suppress(NotFound):  # The collection itself was deleted.
            return self._catalogue.get(name).shadow_version == version
        return False

    def _shadowed(self, name: str, version: str) -> CollectionRecord:
        record = self._catalogue.get(name)
        if record.shadow_version != version:
            raise FailedPrecondition(
                f"the shadow of collection {name!r} for version {version} was given up",
                reason="SHADOW_REPLACED",
            )
        return record


def _is_bound(name: str, version: str) -> Step:
    return Step(ended=f"{name} is bound to version {version}")
