"""What becomes of a write of a collection that broke off, or was refused, in the middle.

The source rows are the truth. `Settler.settle` makes the shards agree with them: it removes the
points of tombstones, looks from the newest row back to where a shard lacks none, and stores from
there on what it lacks, oldest first. So what a shard lacks are always its newest rows, wherever
that breaks off. A row whose source is damaged, or can't be encoded, is passed over. A write that a
shard refused is taken back in the rows, the old ones under fresh revisions, and then settled like
any other.

A shard's writes survive the death of its process, and a loss of power only once it is flushed. What
it lost of an upsert, the rows give back. A point whose removal it lost would stay: so tombstones go
after a flush, which serves all the deletions of a moment, as it waits for the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from hotclip_server.batching.ticket import Priority
from hotclip_server.errors import DataLoss, FailedPrecondition, NotFound
from hotclip_server.search import records
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.search.protocol import VectorStore
from hotclip_server.search.records import CollectionRecord, SourceRow
from hotclip_server.search.sources import Sources, to_meta
from hotclip_server.storage.database import Database

_log = logging.getLogger(__name__)

_ROWS = 256
_RETRY_S, _LONGEST_RETRY_S = 0.5, 10.0
_FLUSH_S = 2.0
"""After a deletion, until the shards are flushed and its tombstones go."""
_ROLLBACK_LOST = "collection %s stays where it is in a rollback to %s, its old vectors are lost: %s"
_SHADOW_LOST = "the shadow of collection %s for version %s is lost, Reindex makes it anew: %s"

T = TypeVar("T")


class Settler:
    """Makes shards agree with source rows. Event loop only; under the collection's lock."""

    def __init__(
        self, database: Database, store: VectorStore, catalogue: Catalogue, sources: Sources
    ) -> None:
        self._database = database
        self._store = store
        self._catalogue = catalogue
        self._sources = sources
        self._removed: dict[str, set[str]] = {}
        """By collection: points that are gone from its shards, which are to be flushed."""

    async def guard(self, record: CollectionRecord, write: Coroutine[Any, Any, T]) -> T:
        """Runs a write; if it breaks off, the collection is settled before the next one."""
        try:
            return await write
        except BaseException:
            if record.name not in self._catalogue.unsettled:
                self._catalogue.unsettled.add(record.name)
                self.settle_later(record.name)
            raise

    async def settle(self, record: CollectionRecord) -> None:
        """Does nothing unless a write broke off."""
        if record.name in self._catalogue.unsettled:
            await self._reconcile(record)
            self._catalogue.unsettled.discard(record.name)

    def settle_later(self, name: str) -> None:
        """Settles it in the background, tried until that succeeds."""

        async def settle() -> None:
            async with self._catalogue.lock(name):
                await self.settle(self._catalogue.get(name))

        self._catalogue.spawn(self._until_done(settle, f"collection {name} is not settled yet"))

    async def take_back(
        self, record: CollectionRecord, ids: Sequence[str], replaced: Sequence[SourceRow]
    ) -> None:
        """Makes the rows of a refused write as they were, and, if it replaced no point, which kinds
        of points the collection holds. Never raises: where that fails, for the database's disk is
        as full, the rows stay, and the write is stored when it can be, as any that broke off.

        Args:
            record: The collection before the write.
            ids: Points of the write; none, and nothing is done, if there are no sources.
            replaced: The rows that it replaced.
        """
        if not ids:
            return
        name = record.name
        old = {row.point_id for row in replaced}
        added = [point_id for point_id in ids if point_id not in old]
        try:
            first = await self._catalogue.next_revisions(name, len(old) + 1)
            # Whoever has seen the revisions in between must find these again.
            rows = [replace(row, revision=first + 1 + at) for at, row in enumerate(replaced)]

            def put_back(connection: Connection) -> None:
                if rows:
                    records.put_sources(connection, name, rows)
                records.mark_deleted(connection, name, added, first)

            await self._database.run(put_back)
            await self.delete_vectors(record, added)
            # Only who holds the lock changes the sides: that they differ is this write's doing. Not
            # before its points are gone, so not if it replaced some, for a shard may have their new
            # vectors until it is settled: then the collection counts as one that held such points.
            if self._catalogue.get(name).sides != record.sides and not rows:
                await self._catalogue.change(name, lambda _, now: now.with_sides(record.sides))
        except Exception:  # noqa: BLE001 - of the store, or of the database: the caller hears of the refusal
            _log.exception("a refused write to collection %s is not taken back yet", name)

    async def delete_vectors(self, record: CollectionRecord, ids: Sequence[str]) -> int:
        """Removes points from the shards, and later their tombstones; how many there were."""
        deleted: list[int] = []
        for shard in record.targets().values():
            with self.unless_dropped(record.name, shard):
                deleted.append(await self._store.delete(shard, ids))
        if record.keep_sources:
            self._flush_later(record.name, ids)
        return deleted[0]

    @contextmanager
    def unless_dropped(self, name: str, shard: str) -> Iterator[None]:
        """Lets a shard be missing that a flip gave up while the write was under way."""
        try:
            yield
        except NotFound as error:
            there = shard in self._catalogue.get(name).targets().values()
            if there or error.reason != "SHARD_NOT_FOUND":
                raise

    async def forget_previous(self, name: str, version: str) -> CollectionRecord:
        """The rollback target is gone: its shard need not be kept up any more."""

        def forget(_: Connection, record: CollectionRecord) -> CollectionRecord:
            gone = record.previous_version == version
            return record.without_previous() if gone else record

        return await self._catalogue.change(name, forget)

    async def _forget_shadow(self, name: str, version: str) -> None:
        """The shadow is gone."""

        def forget(_: Connection, record: CollectionRecord) -> CollectionRecord:
            return record.without_shadow() if record.shadow_version == version else record

        await self._catalogue.change(name, forget)

    def _flush_later(self, name: str, ids: Sequence[str]) -> None:
        """These points are gone from the shards, and their tombstones may go when that is on the
        disk."""
        if name not in self._removed:
            self._removed[name] = set()
            self._catalogue.spawn(self._remove_tombstones_later(name))
        self._removed[name].update(ids)

    async def _remove_tombstones_later(self, name: str) -> None:
        await asyncio.sleep(_FLUSH_S)
        remove = partial(self._remove_tombstones, name)
        await self._until_done(remove, f"removed points of collection {name} are still noted")

    async def _remove_tombstones(self, name: str) -> None:
        async with self._catalogue.lock(name):
            # Of a collection that is unsettled one may be in a shard again: settling removes them
            # all, and comes here. If a shard is lost they stay to the next start.
            with suppress(NotFound):
                record = self._catalogue.get(name)
                if name not in self._catalogue.unsettled:
                    for shard in record.targets().values():
                        with self.unless_dropped(name, shard):
                            await self._store.flush(shard)
                    gone = tuple(self._removed[name])
                    await self._database.run(lambda c: records.remove_tombstones(c, name, gone))
            del self._removed[name]

    async def _until_done(
        self, work: Callable[[], Coroutine[Any, Any, None]], lacking: str
    ) -> None:
        """Tries again whatever is wrong, as a full disk or a store that is away, unless the
        collection is gone; says once what it is."""
        pause, told = _RETRY_S, ""
        while True:
            try:
                return await work()
            except Exception as error:  # noqa: BLE001 - nobody else would go on
                if isinstance(error, NotFound) and error.reason == "COLLECTION_NOT_FOUND":
                    return None
                if told != (told := f"{type(error).__name__}: {error}"):
                    _log.warning("%s: %s", lacking, told, exc_info=error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_RETRY_S)

    async def _reconcile(self, record: CollectionRecord) -> None:
        gone = await self._database.run(lambda c: records.deleted_ids(c, record.name))
        for version, shard in record.targets().items():
            try:
                with self.unless_dropped(record.name, shard):
                    if gone:
                        await self._store.delete(shard, gone)
                    # A growing shadow is the reindex job's to complete: it looks at every row.
                    if version != record.shadow_version or record.shadow_complete:
                        await self._reconcile_shard(record, version, shard)
            except (NotFound, FailedPrecondition, DataLoss) as error:
                # With a shard that is lost every write would fail.
                lost = not isinstance(error, FailedPrecondition)
                if version == record.previous_version:
                    if lost:
                        _log.error(_ROLLBACK_LOST, record.name, version, error)
                    await self.forget_previous(record.name, version)
                elif version == record.shadow_version and lost:
                    _log.error(_SHADOW_LOST, record.name, version, error)
                    await self._forget_shadow(record.name, version)
                else:
                    raise
        if gone:
            self._flush_later(record.name, gone)

    async def _reconcile_shard(self, record: CollectionRecord, version: str, shard: str) -> None:
        if not record.keep_sources:
            await self._store.info(shard)  # It is the truth; a lost one can't be written to.
            return
        whole = await self._whole_until(record.name, shard)
        while rows := await self._database.run(
            lambda c, after=whole: records.sources_after(c, record.name, after, _ROWS)  # type: ignore[misc]  # mypy can't infer lambdas with defaults
        ):
            stored = await self._store.retrieve(shard, [row.point_id for row in rows])
            missing = [r for r in rows if stored.revisions.get(r.point_id) != r.revision]
            if missing:
                await self._restore(record, version, shard, missing)
            whole = rows[-1].revision

    async def _whole_until(self, name: str, shard: str) -> int:
        """A revision up to which the shard lacks no row, for it lacks none of the page that ends
        there; 0 if there is no such page."""
        before: int | None = None
        while True:
            limit = before
            page = await self._database.run(
                lambda c, limit=limit: records.revisions_before(c, name, limit, _ROWS)  # type: ignore[misc]  # as above
            )
            if not page:
                return 0
            stored = (await self._store.retrieve(shard, list(page))).revisions
            if all(stored.get(point_id) == revision for point_id, revision in page.items()):
                return max(page.values())
            before = min(page.values())

    async def _restore(
        self, record: CollectionRecord, version: str, shard: str, rows: Sequence[SourceRow]
    ) -> None:
        """Stores rows, oldest first."""
        await self._store.require_room(4 * len(rows) * record.dim)
        vectors, errors = await self._sources.encode(
            record.model, version, rows, Priority.INTERACTIVE
        )
        for at, error in errors.items():
            where = (rows[at].point_id, record.name)
            _log.error("point %r of collection %s can't be restored: %s", *where, error)
        good = [at for at in range(len(rows)) if at not in errors]
        await self._store.upsert(shard, [to_meta(rows[at]) for at in good], vectors[good])
