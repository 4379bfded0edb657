"""What is recorded of models and versions: the tables, mirrored on the event loop so that
reading waits for nothing. The registry is its only writer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from secrets import token_hex

from sqlalchemy import Connection

from hotclip_server.errors import FailedPrecondition
from hotclip_server.models import naming, records
from hotclip_server.models.directory import Directory
from hotclip_server.models.flip import FlipParticipant
from hotclip_server.models.state import ModelRow, ModelState, VersionRecord
from hotclip_server.storage import request_notes
from hotclip_server.storage.database import Database


@dataclass(frozen=True, kw_only=True)
class RequestNote:
    """Makes a request idempotent."""

    method: str
    request_id: str
    fingerprint: str
    """sha256 of what was asked, hex."""

    @classmethod
    def of(cls, method: str, request_id: str, asked: object) -> RequestNote | None:
        """Of a request; None without an id.

        Args:
            asked: What it says besides, as JSON.

        Raises:
            InvalidArgument: reason REQUEST_ID_INVALID.
        """
        if not request_id:
            return None
        naming.check_request_id(request_id)
        fingerprint = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        return cls(method=method, request_id=request_id, fingerprint=fingerprint)


class _TrialError(Exception):
    """Rolls a trial's transaction back."""


class Catalog(Directory[VersionRecord]):
    """The rows and their mirror."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    async def open(self) -> None:
        """Reads everything."""

        def read(connection: Connection) -> tuple[list[VersionRecord], list[ModelRow]]:
            return records.read_versions(connection), records.read_models(connection)

        versions, models = await self._database.run(read)
        self.versions = {record.id: record for record in versions}
        self.models = {row.name: row for row in models}

    async def find_request(self, note: RequestNote) -> str | None:
        """The resource that the same request made before."""
        return await self._database.run(
            lambda connection: request_notes.find(
                connection, note.method, note.request_id, note.fingerprint
            )
        )

    async def add(self, record: VersionRecord, note: RequestNote | None = None) -> VersionRecord:
        """Records a version, and its model if that is new; the same version twice is one.

        Raises:
            FailedPrecondition: it is another model's; reason VERSION_OF_ANOTHER_MODEL.
        """
        known = self.versions.get(record.id)
        if known is not None and known.model != record.model:
            raise another_models(known)
        row = ModelRow(name=record.model, live="", previous="", etag=token_hex(8))

        def write(connection: Connection) -> VersionRecord:
            if record.model not in self.models:
                records.insert_model(connection, row)
            made = record
            if known is None:
                told = records.lineage_of(connection, record.manifest.source)
                made = replace(record, lineage=told)
                records.insert_version(connection, made)
            elif record.metrics:
                records.update_metrics(connection, record.id, dict(record.metrics))
            if note is not None:
                request_notes.put(
                    connection, note.method, note.request_id, note.fingerprint, record.id
                )
            return made

        made = await self._database.run(write)
        self.models.setdefault(record.model, row)
        if known is not None:
            made = replace(known, metrics=record.metrics or known.metrics)
        self.versions[made.id] = made
        return made

    async def changes(self, model: str, after: int, before: int) -> list[ModelState]:
        """What a model was between two revisions, both excluded, in order."""
        return await self._database.run(lambda c: records.read_changes(c, model, after, before))

    async def check(self, work: Callable[[Connection], None]) -> None:
        """Looks at something in a transaction of its own; raises what `work` raises."""
        await self._database.run(work)

    async def remove(self, version_id: str) -> None:
        """Forgets a version.

        Raises:
            FailedPrecondition: a row names it; reason VERSION_IN_USE.
        """
        await self._database.run(lambda c: records.delete_version(c, version_id))
        self.versions.pop(version_id, None)

    async def release_previous(
        self, row: ModelRow, participants: Sequence[FlipParticipant]
    ) -> None:
        """The model has no rollback target any more; under the lock of flips.

        Raises:
            Aborted: the row has another etag.
        """
        new = row.changed(live=row.live, previous="")

        def write(connection: Connection) -> list[Callable[[], None]]:
            records.update_model(connection, new, etag=row.etag)
            return [
                participant.release(connection, row.name, row.previous)
                for participant in participants
            ]

        actions = await self._database.run(write)
        self.models[row.name] = new
        for action in actions:
            action()

    async def write_flip(
        self,
        row: ModelRow,
        new: ModelRow,
        participants: Sequence[FlipParticipant],
        collections: Sequence[str],
        *,
        trial: bool,
        note: RequestNote | None = None,
    ) -> list[Callable[[], None]]:
        """Does the durable part of a flip in one transaction; the mirror is the caller's.

        Args:
            note: Kept in the same transaction, unless it is a trial.

        Returns:
            What the participants do on the event loop.

        Raises:
            Aborted: the row has another etag.
            HotclipError: a participant's veto.
        """
        actions: list[Callable[[], None]] = []

        def write(connection: Connection) -> None:
            records.update_model(connection, new, etag=row.etag)
            actions.extend(
                participant.flip(connection, row.name, row.live, new.live, collections)
                for participant in participants
            )
            if trial:
                raise _TrialError
            if note is not None:
                request_notes.put(
                    connection, note.method, note.request_id, note.fingerprint, row.name
                )

        try:
            await self._database.run(write)
        except _TrialError:
            return []
        return actions


def another_models(record: VersionRecord) -> FailedPrecondition:
    """A version has one model."""
    return FailedPrecondition(
        f"the same weights are version {record.id} of model {record.model!r}",
        reason="VERSION_OF_ANOTHER_MODEL",
    )
