"""The log of choices: checked, durable, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from hotclip_server.errors import HotclipError, InvalidArgument, NotFound, ResourceExhausted
from hotclip_server.feedback import records
from hotclip_server.feedback.records import Choice, Window
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.search.points import MAX_ID_BYTES
from hotclip_server.search.protocol import Stored, VectorStore
from hotclip_server.search.records import read
from hotclip_server.storage.database import Database, now

MAX_CHOICES = 1000
"""Of one call."""
_AT_ONCE = 64
"""Points whose sources are read in one step: bounds the images in memory."""
LONGEST_REQUEST_ID = 128
CLOCKS_DIFFER = timedelta(minutes=5)
"""How far ahead of this server's clock a caller's may be."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What came of recording; `errors` are by position."""

    recorded: int
    known: int
    """Had been recorded before."""
    errors: dict[int, HotclipError]


class FeedbackLog:
    """Keeps choices. Event loop only.

    Args:
        most: Choices of all collections.
        max_text_bytes: Of a query, in UTF-8.
    """

    def __init__(
        self,
        database: Database,
        catalogue: Catalogue,
        store: VectorStore,
        *,
        most: int = 1_000_000,
        max_text_bytes: int = 8 << 10,
    ) -> None:
        self._database = database
        self._catalogue = catalogue
        self._store = store
        self._most = most
        self._max_text_bytes = max_text_bytes
        self._count: int | None = None
        """At most so many are kept: those that go with their collection are noticed when it
        matters."""

    async def record(self, collection: str, choices: Sequence[Choice]) -> Recorded:
        """Keeps choices; durable when it returns.

        Raises:
            NotFound: no such collection.
            InvalidArgument: no choices.
            ResourceExhausted: reasons TOO_MANY_CHOICES, FEEDBACK_FULL.
        """
        self._catalogue.get(collection)
        if not choices:
            raise InvalidArgument.field("choices", "must hold at least one")
        if len(choices) > MAX_CHOICES:
            raise ResourceExhausted(
                f"choices: {len(choices)}, at most {MAX_CHOICES} are allowed",
                reason="TOO_MANY_CHOICES",
            )
        errors: dict[int, HotclipError] = {}
        latest = now() + CLOCKS_DIFFER
        for at, choice in enumerate(choices):
            if problem := self._problem(f"choices[{at}]", choice, latest):
                errors[at] = problem
        good = [at for at in range(len(choices)) if at not in errors]
        stored = await self._retrieve(collection, list({choices[at].point_id for at in good}))
        contents = await self._contents(collection, stored.revisions)
        keep: list[Choice] = []
        for at in good:
            choice = choices[at]
            revision = stored.revisions.get(choice.point_id)
            if revision is None:
                errors[at] = NotFound(
                    f"choices[{at}].point_id: no point {choice.point_id!r} in collection "
                    f"{collection!r}",
                    reason="POINT_NOT_FOUND",
                )
            else:
                content = contents.get(choice.point_id, "")
                keep.append(replace(choice, revision=revision, content=content))
        recorded = await self._database.run(lambda c: self._insert(c, collection, keep))
        return Recorded(recorded=recorded, known=len(keep) - recorded, errors=errors)

    async def newest(
        self,
        collection: str,
        window: Window,
        *,
        limit: int,
        before: tuple[datetime, int] | None = None,
    ) -> list[Choice]:
        """Newest first; see `records.newest`. Raises NotFound (the collection)."""
        self._catalogue.get(collection)
        return await self._database.run(
            lambda c: records.newest(c, collection, window, limit=limit, before=before)
        )

    async def delete(self, collection: str, window: Window) -> int:
        """Forgets the choices of a window; returns how many. Raises NotFound (the collection)."""
        self._catalogue.get(collection)
        deleted = await self._database.run(lambda c: records.delete(c, collection, window))
        self._count = None
        return deleted

    def _problem(self, field: str, choice: Choice, latest: datetime) -> InvalidArgument | None:
        if not choice.query.strip():
            return InvalidArgument.field(f"{field}.query", "is empty")
        if len(choice.query.encode()) > self._max_text_bytes:
            return InvalidArgument.field(
                f"{field}.query", f"longer than {self._max_text_bytes} bytes"
            )
        if not 1 <= len(choice.point_id.encode()) <= MAX_ID_BYTES:
            return InvalidArgument.field(
                f"{field}.point_id", f"must be 1 to {MAX_ID_BYTES} bytes of UTF-8"
            )
        if len(choice.request_id) > LONGEST_REQUEST_ID:
            return InvalidArgument.field(
                f"{field}.request_id", f"is longer than {LONGEST_REQUEST_ID}"
            )
        if choice.time > latest:
            return InvalidArgument.field(f"{field}.time", "is in the future")
        return None

    async def _retrieve(self, collection: str, ids: list[str]) -> Stored:
        while True:
            shard = self._catalogue.get(collection).shard
            try:
                return await self._store.retrieve(shard, ids)
            except NotFound as error:
                # A flip put another shard in place of this one.
                moved = self._catalogue.get(collection).shard != shard
                if error.reason != "SHARD_NOT_FOUND" or not moved:
                    raise

    async def _contents(self, collection: str, revisions: Mapping[str, int]) -> dict[str, str]:
        """`content_of` those of the points that are not being written at this moment."""
        found: dict[str, str] = {}
        if self._catalogue.get(collection).keep_sources:
            for start in range(0, len(revisions), _AT_ONCE):
                part = dict(list(revisions.items())[start : start + _AT_ONCE])
                found |= await self._database.run(
                    lambda c, part=part: records.contents_of(c, collection, part)  # type: ignore[misc]  # mypy can't infer lambdas with defaults
                )
        return found

    def _insert(self, connection: Connection, collection: str, choices: Sequence[Choice]) -> int:
        """Adds those that are new; on the database's thread, where nobody else counts."""
        read(connection, collection)  # Not deleted meanwhile.
        asked = [choice.request_id for choice in choices if choice.request_id]
        seen = records.known_requests(connection, collection, asked)
        new: list[Choice] = []
        for choice in choices:
            if choice.request_id in seen:
                continue
            if choice.request_id:
                seen.add(choice.request_id)
            new.append(choice)
        count = self._count
        if count is None or count + len(new) > self._most:
            count = records.count(connection)
        if count + len(new) > self._most:
            raise ResourceExhausted(
                f"{count} choices are kept, the most are {self._most}: delete old ones",
                reason="FEEDBACK_FULL",
            )
        records.insert(connection, collection, new)
        self._count = count + len(new)
        return len(new)
