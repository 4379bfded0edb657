"""Choices become pairs: the text that was searched with, the image of the point that was taken.

A page of choices after the other goes into an upload like that of a caller, so that a dataset
of choices is checked, named by its content and stored like any other, and no more than a page
of images is in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.datasets.records import DatasetRecord, Sent, UploadTerms
from hotclip_server.datasets.rows import Row
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.datasets.upload import DatasetUpload
from hotclip_server.errors import FailedPrecondition, InvalidArgument
from hotclip_server.feedback import records
from hotclip_server.feedback.records import Choice, Window, content_of
from hotclip_server.search.blobs import SourceBlobs
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.search.records import SourceRow
from hotclip_server.storage.database import Database

DEFAULT_CHOICES, MOST_CHOICES = 100_000, 1_000_000
_PAGE = 64
"""Choices of one step: bounds the images in memory."""
_NAMED = 10
"""Points that are named of each reason."""

DUPLICATE, POINT_GONE, POINT_CHANGED = "DUPLICATE", "POINT_GONE", "POINT_CHANGED"
NO_SOURCE, NOT_AN_IMAGE, IMAGE_UNFIT = "NO_SOURCE", "NOT_AN_IMAGE", "IMAGE_UNFIT"


@dataclass
class Unused:
    """Choices of one reason."""

    choices: int = 0
    point_ids: list[str] = field(default_factory=list)
    """The first of them, each once."""

    def add(self, point_id: str) -> None:
        """One more."""
        self.choices += 1
        if len(self.point_ids) < _NAMED and point_id not in self.point_ids:
            self.point_ids.append(point_id)


@dataclass
class Tally:
    """Where every choice went: `choices == used + sum of unused`."""

    choices: int = 0
    used: int = 0
    unused: dict[str, Unused] = field(default_factory=dict)
    dataset: DatasetRecord | None = None

    def leave_out(self, reason: str, point_id: str) -> None:
        """A choice makes no pair."""
        self.unused.setdefault(reason, Unused()).add(point_id)

    def __str__(self) -> str:
        told = [f"{unused.choices} {reason}" for reason, unused in sorted(self.unused.items())]
        return f"{self.used} of {self.choices} choices make a pair" + (
            f" ({', '.join(told)})" if told else ""
        )


@dataclass
class _Sending:
    """What an upload has got so far."""

    terms: UploadTerms
    upload: DatasetUpload | None = None
    rows: int = 0
    images: set[str] = field(default_factory=set)
    """Keys of those that were sent."""


class FeedbackDatasets:
    """Makes datasets of choices. Event loop only.

    Args:
        blobs: Large sources.
    """

    def __init__(
        self, database: Database, catalogue: Catalogue, datasets: DatasetStore, blobs: SourceBlobs
    ) -> None:
        self._database = database
        self._catalogue = catalogue
        self._datasets = datasets
        self._blobs = blobs

    async def count(self, collection: str, window: Window, *, most: int) -> Tally:
        """Where the newest `most` choices of a window would go; images are not decoded.

        Raises:
            NotFound: no such collection.
        """
        return await self._walk(collection, window, most, None)

    async def create(
        self, collection: str, window: Window, *, most: int, name: str, description: str
    ) -> Tally:
        """Makes a dataset of the newest `most` choices of a window.

        Raises:
            NotFound: no such collection.
            FailedPrecondition: no choice makes a pair; reason FEEDBACK_UNUSABLE.
            HotclipError: what `DatasetStore.begin`, adding and `commit` raise.
        """
        # Images that are no use for training are bad rows: they are counted, the others stay.
        terms = UploadTerms(name=name, description=description, max_bad_share=1.0)
        sending = _Sending(terms)
        try:
            tally = await self._walk(collection, window, most, sending)
            if sending.upload is None:
                raise _unusable(collection, tally)
            await self._commit(collection, sending, sending.upload, tally)
        except BaseException:
            if sending.upload is not None:
                await asyncio.shield(self._datasets.run(sending.upload.discard))
            raise
        return tally

    async def _walk(
        self, collection: str, window: Window, most: int, sending: _Sending | None
    ) -> Tally:
        tally, seen = Tally(), set[tuple[str, str]]()
        before: tuple[datetime, int] | None = None
        while tally.choices < most:
            kept = self._catalogue.get(collection).keep_sources
            limit, start = min(_PAGE, most - tally.choices), before
            page = await self._database.run(
                lambda c, limit=limit, start=start: records.newest(  # type: ignore[misc]  # mypy can't infer lambdas with defaults
                    c, collection, window, limit=limit, before=start
                )
            )
            if not page:
                break
            before = (page[-1].time, page[-1].seq)
            ids = list({choice.point_id for choice in page})
            found = await self._database.run(
                lambda c, ids=ids: records.sources_of(c, collection, ids)  # type: ignore[misc]  # as above
            )
            await self._take(page, found, kept=kept, seen=seen, tally=tally, sending=sending)
        return tally

    async def _take(
        self,
        page: Sequence[Choice],
        found: dict[str, SourceRow],
        *,
        kept: bool,
        seen: set[tuple[str, str]],
        tally: Tally,
        sending: _Sending | None,
    ) -> None:
        keys: dict[str, str] = {}
        rows: list[Row] = []
        for choice in page:
            tally.choices += 1
            row = found.get(choice.point_id)
            reason = _reason(choice, row, kept=kept)
            if not reason and (choice.query, choice.point_id) in seen:
                reason = DUPLICATE
            if reason or row is None:
                tally.leave_out(reason, choice.point_id)
                continue
            seen.add((choice.query, choice.point_id))
            tally.used += 1
            if sending is not None:
                if choice.point_id not in keys:
                    keys[choice.point_id] = await self._send_image(sending, row)
                where = f"choice of {choice.point_id}"
                rows.append(Row(keys[choice.point_id], choice.query, where=where))
        if rows and sending is not None and sending.upload is not None:
            sending.rows += len(rows)
            await self._datasets.run(sending.upload.add_rows, rows)

    async def _send_image(self, sending: _Sending, row: SourceRow) -> str:
        image = await asyncio.to_thread(self._read, row)
        key = hashlib.sha256(image).hexdigest()
        if sending.upload is None:
            sending.upload = await self._datasets.begin(sending.terms)
        if key not in sending.images:
            sending.images.add(key)
            await self._datasets.run(sending.upload.add_image, key, image)
        return key

    async def _commit(
        self, collection: str, sending: _Sending, upload: DatasetUpload, tally: Tally
    ) -> None:
        note = f"of {tally.choices} choices of collection {collection}"
        sent = Sent(pairs=sending.rows, images=len(sending.images), notes=(note,))
        try:
            tally.dataset = await self._commit_whole(sending, upload, sent)
        except InvalidArgument as error:
            if error.reason != "DATASET_EMPTY":
                raise
            tally.unused[IMAGE_UNFIT] = Unused(choices=tally.used)
            tally.used = 0
            raise _unusable(collection, tally) from error
        report = tally.dataset.report
        if report is None:
            raise RuntimeError("a new dataset has no report; this is a bug")
        for reason, lost in ((IMAGE_UNFIT, report.bad_rows), (DUPLICATE, report.duplicate_pairs)):
            if lost:
                unused = tally.unused.setdefault(reason, Unused())
                unused.choices += lost
                tally.used -= lost
        if IMAGE_UNFIT in tally.unused:
            named = [row.where.removeprefix("choice of ") for row in report.listed[:_NAMED]]
            tally.unused[IMAGE_UNFIT].point_ids = list(dict.fromkeys(named))

    async def _commit_whole(
        self, sending: _Sending, upload: DatasetUpload, sent: Sent
    ) -> DatasetRecord:
        """Stores what is complete also if the caller leaves meanwhile."""
        commit = asyncio.create_task(self._datasets.commit(upload, sent))
        try:
            return await asyncio.shield(commit)
        except asyncio.CancelledError:
            if not commit.done():
                sending.upload = None  # It belongs to the commit now.
            raise

    def _read(self, row: SourceRow) -> bytes:
        item = EncodeItem.FromString(row.item or self._blobs.get(row.blob or ""))
        return item.image


def _reason(choice: Choice, row: SourceRow | None, *, kept: bool) -> str:
    """Why a choice makes no pair; empty if it may."""
    if row is None:
        return POINT_GONE if kept else NO_SOURCE
    if row.revision != choice.revision and not _same(choice, row):
        return POINT_CHANGED
    if row.kind == "vector":
        return NO_SOURCE
    return "" if row.kind == "image" else NOT_AN_IMAGE


def _same(choice: Choice, row: SourceRow) -> bool:
    """Whether a point that was written again holds the same image, perhaps with another payload."""
    return bool(choice.content) and choice.content == content_of(row)


def _unusable(collection: str, tally: Tally) -> FailedPrecondition:
    counts = {reason.lower(): str(found.choices) for reason, found in tally.unused.items()}
    return FailedPrecondition(
        f"nothing to learn from in collection {collection!r}: {tally}",
        reason="FEEDBACK_UNUSABLE",
        metadata={"choices": str(tally.choices), **counts},
    )
