"""The collections there are, which version and shard each is bound to, and how that flips.

The rows in SQLite are the truth; the event loop reads a copy. Whatever changes a row runs on
the database's thread and is applied to the copy on the loop right after the commit.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Coroutine, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from hotclip_server.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    HotclipError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from hotclip_server.models.background import Background
from hotclip_server.models.residents import Pin
from hotclip_server.search import records
from hotclip_server.search.encoding import Versions
from hotclip_server.search.holding import Holdings
from hotclip_server.search.protocol import VectorStore
from hotclip_server.search.records import CollectionRecord, binding_of
from hotclip_server.storage.database import Database, now

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
FLIP_POLL_S = 0.005
"""Between two looks whether a flip that has committed shows."""


class Catalogue:
    """Collections by name; event loop only, but for `flip` and `release`.

    Args:
        max_collections: Most that may exist.
    """

    def __init__(
        self,
        database: Database,
        store: VectorStore,
        versions: Versions,
        *,
        max_collections: int = 1000,
    ) -> None:
        self._database = database
        self._store = store
        self._versions = versions
        self._holdings = Holdings(versions)
        self._max_collections = max_collections
        self._records: dict[str, CollectionRecord] = {}
        # Each as long as somebody holds it or waits for it: also one that waits for a name whose
        # collection is deleted, and made anew, must find who comes after it.
        self._locks = WeakValueDictionary[str, asyncio.Lock]()
        self._revisions: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._background = Background()
        self.unsettled: set[str] = set()
        """Collections whose shards may lack what SQLite has: after the start, and after a write
        that broke off in between."""
        self._opened = False

    async def open(self) -> None:
        """Reads the collections, makes their versions resident, drops shards of none."""
        there = set(await self._store.shards())
        for record in await self._database.run(records.read_all):
            held = await self._holdings.begin(record)
            if held != record:
                held = await self._database.run(partial(records.update, record=held))
            self._records[record.name] = held
            self.unsettled.add(record.name)
            await self._open_shard(held, there)
        if self._holdings.lacking:
            self.spawn(self._holdings.retain_lacking())
        used = {shard for record in self._records.values() for shard in record.targets().values()}
        for shard in there - used:
            await self._store.drop(shard)
        self._opened = True

    async def close(self) -> None:
        """Ends what is under way in the background; the next start makes up for it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._background.settle()

    def get(self, name: str) -> CollectionRecord:
        """A collection. Raises NotFound, or Unavailable while the server starts."""
        self._check_open()
        record = self._records.get(name)
        if record is None:
            raise NotFound(f"no collection {name!r}", reason="COLLECTION_NOT_FOUND")
        return record

    def list(self) -> list[CollectionRecord]:
        """All collections, by name. Raises Unavailable while the server starts."""
        self._check_open()
        return [self._records[name] for name in sorted(self._records)]

    def of_image_encoder(self, encoder_id: str) -> Sequence[str]:
        """Names of the collections whose image vectors are of this encoder."""
        return tuple(
            sorted(r.name for r in self._records.values() if r.vision_encoder_id == encoder_id)
        )

    def lock(self, name: str) -> asyncio.Lock:
        """Held by whoever writes points of a collection: writes come one after the other."""
        return self._locks.setdefault(name, asyncio.Lock())

    async def next_revisions(self, name: str, count: int) -> int:
        """The first of `count` fresh revisions; under the lock."""
        if name not in self._revisions:
            last = await self._database.run(lambda c: records.last_revision(c, name))
            self._revisions[name] = last
        self._revisions[name] += count
        return self._revisions[name] - count + 1

    async def create(
        self, name: str, *, model: str = "", version: str = "", keep_sources: bool = True
    ) -> CollectionRecord:
        """Makes an empty collection, bound to `version` (empty: the live one).

        Raises:
            InvalidArgument: the name.
            AlreadyExists: there is one of this name.
            NotFound, FailedPrecondition: model, version, also one that is deleted meanwhile.
            ResourceExhausted: too many collections.
        """
        self._check_open()
        if not _NAME.fullmatch(name):
            raise InvalidArgument.field("name", "must be 1 to 128 of A-Z a-z 0-9 . _ -")
        if name in self._records:
            raise AlreadyExists(f"there is a collection {name!r}")
        if len(self._records) >= self._max_collections:
            raise ResourceExhausted(
                f"there are {self._max_collections} collections, the most allowed",
                reason="TOO_MANY_COLLECTIONS",
            )
        while True:
            pin = self._versions.pin(model, version)
            record = CollectionRecord(
                **asdict(binding_of(pin.resident)),
                name=name,
                model=pin.resident.model,
                keep_sources=keep_sources,
                shard=new_shard(),
                create_time=now(),
            )
            making = self._create(pin, record, anywhere=bool(version))
            if await self._background.uninterrupted(making):
                return record
            await asyncio.sleep(FLIP_POLL_S)

    async def delete(self, name: str) -> None:
        """Removes a collection with its points. Raises NotFound."""
        self.get(name)
        await self._background.uninterrupted(self._delete(name))

    async def change(
        self, name: str, change: Callable[[Connection, CollectionRecord], CollectionRecord]
    ) -> CollectionRecord:
        """Changes a row in one transaction, then the copy; both or none, if the caller goes too."""

        def work(connection: Connection, record: CollectionRecord) -> CollectionRecord:
            return records.update(connection, change(connection, record))

        while (record := await self.commit(self.get(name), work)) is None:  # noqa: ASYNC110 - no event
            await asyncio.sleep(FLIP_POLL_S)
        return record

    async def commit(
        self,
        known: CollectionRecord,
        work: Callable[[Connection, CollectionRecord], CollectionRecord],
    ) -> CollectionRecord | None:
        """Runs `work` in one transaction with the row, and applies the row that it gives; goes
        on to its end when the caller is cancelled.

        Returns:
            None, and nothing was done, if the row is not what `known` says any more: a flip has
            committed and is about to show, or somebody else changed it.

        Raises:
            NotFound: the collection is gone.
        """

        def guarded(connection: Connection) -> CollectionRecord | None:
            record = records.read(connection, known.name)
            current = record.generation == known.generation
            return work(connection, record) if current else None

        async def both() -> CollectionRecord | None:
            record = await self._database.run(guarded)
            if record is not None:
                self.apply(record)
            return record

        return await self._background.uninterrupted(both())

    def apply(self, record: CollectionRecord) -> None:
        """Makes a committed row the one that requests see."""
        old = self._records.get(record.name)
        self._records[record.name] = record
        self._holdings.change(old, record)
        if old is not None:
            self._drop(set(old.targets().values()) - set(record.targets().values()))

    def flip(
        self,
        connection: Connection,
        model: str,
        old_version: str,
        new_version: str,
        names: Sequence[str],
    ) -> Callable[[], None]:
        """Takes part in a flip of the live version; see models.flip.FlipParticipant.

        Complete shadows for the new version, or those of them that `names` lists, go live
        with it; so do shards kept for a rollback to it. What was live is kept, and gets every
        write, as long as its version is the rollback target. A collection that is bound to the
        version that was live, and of whose vectors the new one changes none, follows as it is:
        also back. Other collections stay bound.

        Raises:
            NotFound: `names` lists a collection that the model does not have.
            FailedPrecondition: one that has no complete shadow; reason SHADOW_INCOMPLETE.
        """
        found = {r.name: r for r in records.read_all(connection) if r.model == model}
        binding = records.read_binding(connection, model, new_version)
        _, previous = records.read_model(connection, model)
        changed: list[tuple[CollectionRecord, CollectionRecord]] = []
        for record in found.values():
            named = record.name in names
            flipped = record
            if record.version != new_version:
                follows = record.version == old_version and record.unchanged_by(binding)
                ready = _ready(record, new_version)
                if named and not ready and not follows:
                    raise _no_shadow(record, new_version)
                if ready and (not names or named or record.previous_version == new_version):
                    flipped = record.bound_to(binding)
                elif follows:
                    flipped = record.followed_to(binding)
            if flipped.previous_version not in (None, previous, new_version):
                flipped = flipped.without_previous()
            if flipped != record:
                changed.append((record, records.update(connection, flipped)))
        if missing := set(names) - set(found):
            raise NotFound(
                f"model {model!r} has no collection {min(missing)!r}", reason="COLLECTION_NOT_FOUND"
            )
        return partial(self._apply_all, changed)

    def release(self, connection: Connection, model: str, version: str) -> Callable[[], None]:
        """Shards that were kept up for a rollback get no more writes; see models.flip."""
        changed = [
            (record, records.update(connection, record.without_previous()))
            for record in records.read_all(connection)
            if record.model == model and record.previous_version == version
        ]
        return partial(self._apply_all, changed)

    def _apply_all(self, changed: Sequence[tuple[CollectionRecord, CollectionRecord]]) -> None:
        for before, after in changed:
            known = self._records.get(before.name)
            # Not one that was deleted meanwhile, and perhaps made anew.
            if known is not None and known.shard == before.shard:
                self.apply(after)

    def _check_open(self) -> None:
        if not self._opened:
            raise Unavailable("collections are being opened", retry_after_s=1.0)

    async def _create(self, pin: Pin, record: CollectionRecord, *, anywhere: bool) -> bool:
        """False if the version is not live any more, unless it may be `anywhere`: a flip that
        does not know the collection would leave it behind."""

        def insert(connection: Connection) -> bool:
            live, _ = records.read_model(connection, record.model)
            if made := anywhere or live == record.version:
                # It may have been deleted since it was pinned: no collection's name is to blame.
                records.read_binding(connection, record.model, record.version)
                records.insert(connection, record)
            return made

        with pin:
            await self._store.create(record.shard, record.dim)
            try:
                made = await self._database.run(insert)
            except IntegrityError as error:
                await self._store.drop(record.shard)
                raise AlreadyExists(f"there is a collection {record.name!r}") from error
            except HotclipError:
                await self._store.drop(record.shard)
                raise
            if made:
                self.apply(record)
            else:
                await self._store.drop(record.shard)
            return made

    async def _delete(self, name: str) -> None:
        async with self.lock(name):
            record = self.get(name)
            await self._database.run(lambda c: records.delete(c, name))
            del self._records[name]
            self._revisions.pop(name, None)
            self.unsettled.discard(name)
            self._holdings.change(record, None)
            self._drop(set(record.targets().values()))

    async def _open_shard(self, record: CollectionRecord, there: AbstractSet[str]) -> None:
        """Makes it anew, to be filled from the sources, if the folder of vectors was lost."""
        if record.shard not in there and not record.keep_sources:
            _log.error("the points of collection %s are lost: it keeps no sources", record.name)
        try:
            await self._store.create(record.shard, record.dim)
        except DataLoss as error:
            # The server starts all the same; this collection says why it can't serve.
            _log.error("the points of collection %s can't be read: %s", record.name, error)

    def _drop(self, shards: set[str]) -> None:
        async def drop(shard: str) -> None:
            try:
                await self._store.drop(shard)
            except HotclipError as error:
                _log.warning("shard %s is left to the next start: %s", shard, error)

        for shard in shards:
            self.spawn(drop(shard))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs work in the background, until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def new_shard() -> str:
    """A fresh name of a shard."""
    return secrets.token_hex(16)


def with_shadow(record: CollectionRecord, version: str, shard: str) -> CollectionRecord:
    """A shadow begins for `version`; one for another version is given up."""
    fresh = record.without_shadow()
    return replace(fresh, shadow_version=version, shadow_shard=shard)


def _ready(record: CollectionRecord, version: str) -> bool:
    """Whether a shard of that version has every acknowledged write."""
    complete = version == record.shadow_version and record.shadow_complete
    return complete or version == record.previous_version


def _no_shadow(record: CollectionRecord, version: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"collection {record.name!r} has no complete shadow for version {version}",
        reason="SHADOW_INCOMPLETE",
    )
