"""An upload on its way to the disk: in memory is one message at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from hotclip_server.datasets import digest
from hotclip_server.datasets.records import MIB, DatasetCounts, DatasetLimits, Sent, UploadTerms
from hotclip_server.datasets.report import BadRow, DatasetInvalid, DatasetReport
from hotclip_server.datasets.rows import KEY, Row, image_facts, row_violations
from hotclip_server.datasets.spool import Spool
from hotclip_server.errors import Aborted, FieldViolation, InvalidArgument, ResourceExhausted
from hotclip_server.storage.atomic import new_folder, raise_if_disk_full

log = logging.getLogger(__name__)

IMAGES, IMAGE_INDEX, PAIRS, MANIFEST = "images.bin", "images.jsonl", "pairs.jsonl", "dataset.json"
SPOOL = "spool.db"
DISK_CHECK_BYTES = 16 * MIB
MOST_UNUSED_NAMED = 20
LONGEST_REMARK = 512
"""Characters of a caller's name of a row, or reason, that are kept."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A complete upload in a temporary folder."""

    folder: Path
    dataset_id: str
    counts: DatasetCounts
    report: DatasetReport


@dataclass
class _State:
    """What is counted on the way; kept with every checkpoint."""

    parts: int = 0
    """Messages taken: images, pairs and rejected rows."""
    digest: str = digest.START.hex()
    images: int = 0
    rows: int = 0
    """Of pairs, good and bad."""
    rows_of_caller: int = 0
    """That the caller rejected."""
    rejected: int = 0
    """Rows that are bad by themselves, the caller's included."""
    bytes: int = 0
    image_bytes: int = 0
    """Length of the file of images."""


class DatasetUpload:
    """Takes images and rows in any order. Every method blocks; any thread, one at a time.

    After a crash or `suspend` an upload of the same folder has what it had at the last
    `checkpoint`.

    Args:
        folder: Of this upload alone; filled if it goes on.
        terms: What the caller asked for; None: as the folder has it.
    """

    def __init__(
        self, folder: Path, limits: DatasetLimits, terms: UploadTerms | None = None
    ) -> None:
        self.folder = folder
        self._limits = limits
        self._lock = threading.Lock()
        self._closed = False
        self._checked_at = 0
        folder.mkdir(exist_ok=True)
        self._spool = Spool(folder / SPOOL)
        stored = self._spool.read_state()
        self.terms = UploadTerms(**stored["terms"]) if terms is None else terms
        self._state = _State(**stored.get("state", {}))
        # What came after the last checkpoint is not known of and is written again.
        self._images = (folder / IMAGES).open("ab")
        self._images.truncate(self._state.image_bytes)
        if not stored:
            self.checkpoint()

    @property
    def id(self) -> str:
        """How the caller names it."""
        return self.folder.name

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._closed

    @property
    def parts(self) -> int:
        """Messages that were taken."""
        return self._state.parts

    @property
    def digest(self) -> str:
        """Running checksum after them, hex."""
        return self._state.digest

    def add_image(self, key: str, data: bytes) -> None:
        """Checks an image, decoding it, and keeps it.

        Raises:
            InvalidArgument: `key` is no key.
            DataLoss: `key` is not the sha256 of `data`.
            ResourceExhausted: the limit of bytes, or the disk is full.
        """
        if not KEY.fullmatch(key):
            field = f"images[{self._state.images}].key"
            raise InvalidArgument.field(field, "must be the sha256 of data in lower-case hex")
        facts = image_facts(key, data, self._limits)
        with self._open():
            state = self._state
            length = 0 if facts.problem else len(data)
            if self._spool.add_image(key, state.image_bytes, length, state.images, facts):
                self._grow(length)
                self._images.write(data[:length])
                state.image_bytes += length
            state.images += 1
            self._take(digest.after_image(bytes.fromhex(state.digest), key))

    def add_rows(self, rows: Sequence[Row]) -> None:
        """Checks rows by themselves and keeps them.

        Raises:
            DatasetInvalid: so many are bad that the rest is not worth reading.
            ResourceExhausted: the limit of bytes, or the disk is full.
        """
        with self._open():
            self._grow(sum(len(row.line().encode()) for row in rows))
            for row in rows:
                self._state.rows += 1
                self._add_row(row, self._state.rows - 1)
            self._take(digest.after_rows(bytes.fromhex(self._state.digest), rows))

    def add_rejected(self, rows: Sequence[BadRow]) -> None:
        """Notes rows that the caller found bad; errors as `add_rows`."""
        with self._open():
            self._grow(sum(len(row.where) + len(row.field) + len(row.reason) for row in rows))
            for row in rows:
                self._state.rows_of_caller += 1
                self._reject(row)
            self._take(digest.after_rejected(bytes.fromhex(self._state.digest), rows))

    def checkpoint(self) -> int:
        """Makes what was taken safe from a crash. Returns `parts`."""
        with self._open():
            self._checkpoint()
            return self._state.parts

    def finish(self, sent: Sent) -> Staged:
        """Checks what goes together and writes the files of the dataset to a folder beside.

        The upload itself stays as it is, so that this can be done again.

        Raises:
            InvalidArgument: other numbers came than were sent, or an image that no row names.
            DatasetInvalid: more rows are bad than the terms allow.
            ResourceExhausted: the disk is full.
        """
        with self._open():
            self._check_complete(sent)
            self._checkpoint()
            staged = new_folder(self.folder.parent)
            try:
                with self._spool.undone():
                    return self._stage(staged, sent.notes)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise

    def suspend(self) -> None:
        """Keeps what came for an upload of the same folder; nothing after `discard`."""
        with self._lock:
            if self._closed:
                return
            try:
                self._checkpoint()
            except (OSError, sqlite3.Error) as error:  # it goes on from the one before
                log.warning("upload %s loses its last parts: %s", self.folder.name, error)
            self._close()

    def discard(self) -> None:
        """Leaves nothing behind; does nothing after `suspend`."""
        with self._lock:
            if self._closed:
                return
            self._close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        self._closed = True
        self._images.close()
        self._spool.close()

    def _checkpoint(self) -> None:
        self._images.flush()
        os.fsync(self._images.fileno())
        # The file first: the database never knows of images that are not there.
        self._spool.commit({"terms": asdict(self.terms), "state": asdict(self._state)})

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise Aborted("the upload goes on in another call", reason="UPLOAD_TAKEN_OVER")
            try:
                yield
            except OSError as error:
                raise_if_disk_full(error)
                raise
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise _disk_full() from error
                raise

    def _take(self, checksum: bytes) -> None:
        self._state.parts += 1
        self._state.digest = checksum.hex()

    def _add_row(self, row: Row, place: int) -> None:
        named = row.at(row.where[:LONGEST_REMARK] or f"pairs[{place}]")
        problems = list(row_violations(named, self._limits))
        self._spool.add_names(named, place)
        if not problems:
            self._spool.add_row(named, named.line(), place)
            return
        more = [f"{problem.field} {problem.reason}" for problem in problems[1:]]
        told = "; ".join([problems[0].reason, *more])
        self._reject(BadRow(named.where, problems[0].field, told))

    def _reject(self, row: BadRow) -> None:
        self._state.rejected += 1
        if self._state.rejected <= self._limits.max_listed_rows:
            self._spool.reject(BadRow(*(text[:LONGEST_REMARK] for text in astuple(row))))
        elif self.terms.max_bad_share == 0 and self._state.rejected > self.terms.max_bad_rows:
            with self._spool.undone():
                report = self._report(self._state.rejected, ())
            raise DatasetInvalid(report, self.terms.max_bad_rows)

    def _grow(self, size: int) -> None:
        state = self._state
        state.bytes += size
        if state.bytes > self._limits.max_bytes:
            raise ResourceExhausted(
                f"the dataset has more than {self._limits.max_bytes} bytes",
                reason="DATASET_TOO_LARGE",
            )
        if self._checked_at == 0 or state.bytes - self._checked_at >= DISK_CHECK_BYTES:
            self._checked_at = state.bytes
            if shutil.disk_usage(self.folder).free < self._limits.min_free_disk_bytes:
                raise _disk_full()

    def _check_complete(self, sent: Sent) -> None:
        state = self._state
        told = {
            "close.pairs": (sent.pairs, state.rows),
            "close.images": (sent.images, state.images),
            "close.digest": (sent.digest or state.digest, state.digest),
        }
        wrong = [
            FieldViolation(field, f"says {said}, {came} came")
            for field, (said, came) in told.items()
            if said != came
        ]
        if wrong:
            raise InvalidArgument.fields(wrong, reason="UPLOAD_INCOMPLETE")
        unused = [
            FieldViolation(f"images[{place}].key", f"no pair names image {key}")
            for place, key in self._spool.unused_images(MOST_UNUSED_NAMED)
        ]
        if unused:
            raise InvalidArgument.fields(unused, reason="IMAGE_UNUSED")

    def _stage(self, folder: Path, notes: Sequence[str]) -> Staged:
        bad = self._state.rejected
        for row, copies in self._spool.settle():
            if bad < self._limits.max_listed_rows:
                self._spool.reject(row)
            bad += copies
        report = self._report(bad, notes)
        allowed = self.terms.allowed(report.rows)
        if bad > allowed:
            raise DatasetInvalid(report, allowed)
        counts = self._spool.counts()
        if not counts["pairs"]:
            raise InvalidArgument.field("pairs", "the dataset has none", reason="DATASET_EMPTY")
        checksum = _write_lines(folder / PAIRS, self._spool.lines())
        index_checksum = _write_lines(folder / IMAGE_INDEX, self._index())
        counts["size_bytes"] += (folder / PAIRS).stat().st_size
        manifest = {
            "format": 1,
            "counts": counts,
            "sha256": {PAIRS: checksum, IMAGE_INDEX: index_checksum},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        os.link(self.folder / IMAGES, folder / IMAGES)
        return Staged(
            folder=folder,
            dataset_id=f"ds-{checksum[:32]}",
            counts=DatasetCounts(**counts),
            report=report,
        )

    def _report(self, bad: int, notes: Sequence[str]) -> DatasetReport:
        found: dict[str, Any] = self._spool.findings()
        return DatasetReport(
            rows=self._state.rows + self._state.rows_of_caller,
            bad_rows=bad,
            duplicate_pairs=self._spool.counts()["duplicate_pairs"],
            listed=tuple(self._spool.rejected()),
            notes=tuple(notes),
            **found,
        )

    def _index(self) -> Iterator[str]:
        for key, start, length in self._spool.images():
            yield json.dumps({"key": key, "start": start, "length": length})


def _write_lines(path: Path, lines: Iterator[str]) -> str:
    checksum = hashlib.sha256()
    with path.open("xb") as file:
        for line in lines:
            encoded = line.encode() + b"\n"
            checksum.update(encoded)
            file.write(encoded)
    return checksum.hexdigest()


def _disk_full() -> ResourceExhausted:
    return ResourceExhausted("the server's disk is nearly full", reason="DISK_FULL")
