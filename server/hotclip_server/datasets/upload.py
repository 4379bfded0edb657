"""An upload on its way to the disk: in memory is one message at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hotclip_server.datasets.records import MIB, DatasetCounts, DatasetLimits
from hotclip_server.datasets.rows import Row, image_violation, row_violations
from hotclip_server.errors import FieldViolation, InvalidArgument, ResourceExhausted
from hotclip_server.storage.atomic import new_folder, raise_if_disk_full

IMAGES, IMAGE_INDEX, PAIRS, MANIFEST = "images.bin", "images.jsonl", "pairs.jsonl", "dataset.json"
DISK_CHECK_BYTES = 16 * MIB

_SPOOL = "spool.db"
_TABLES = """
CREATE TABLE images (key TEXT PRIMARY KEY, start INTEGER, length INTEGER, place INTEGER)
    WITHOUT ROWID;
CREATE TABLE pairs (image_key TEXT, line TEXT, text TEXT, grp TEXT, label TEXT,
    negatives INTEGER, place INTEGER, PRIMARY KEY (image_key, line)) WITHOUT ROWID;
CREATE TABLE named (image_key TEXT, place INTEGER, PRIMARY KEY (image_key)) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A complete upload in its temporary folder."""

    folder: Path
    dataset_id: str
    counts: DatasetCounts


class DatasetUpload:
    """Takes images and pairs in any order. Every method blocks; any thread, one at a time.

    Bad rows are collected and reported together by `finish`, or as soon as there are
    `max_violations` of them.
    """

    def __init__(self, root: Path, limits: DatasetLimits) -> None:
        self._limits = limits
        self._folder = new_folder(root)
        self._lock = threading.Lock()
        self._closed = False
        self._violations: list[FieldViolation] = []
        self._images_seen = self._pairs_seen = self._bytes = self._checked_at = 0
        self._images = (self._folder / IMAGES).open("xb")
        # Order and duplicates are found on disk: a set in memory would grow with the upload.
        self._spool = sqlite3.connect(
            self._folder / _SPOOL, check_same_thread=False, isolation_level=None
        )
        self._spool.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _TABLES)

    def add_image(self, key: str, data: bytes) -> None:
        """Checks an image, decoding it, and keeps it.

        Raises:
            InvalidArgument: too many bad rows.
            DataLoss: `key` is not the sha256 of `data`.
            ResourceExhausted: the limit of bytes, or the disk is full.
        """
        violation = image_violation(key, data, f"images[{self._images_seen}]", self._limits)
        with self._open():
            place = self._images_seen
            self._images_seen += 1
            if violation is not None:
                self._refuse(violation)
                # So that pairs of a bad image are not reported as well.
                self._note_image(key, place, 0)
            elif self._note_image(key, place, len(data)):
                self._grow(len(data))
                self._images.write(data)

    def add_pairs(self, rows: Sequence[Row]) -> None:
        """Checks pairs by themselves and keeps them; errors as `add_image`."""
        with self._open():
            lines = [row.line() for row in rows]
            self._grow(sum(len(line.encode()) for line in lines))
            self._spool.execute("BEGIN")
            for row, line in zip(rows, lines, strict=True):
                place = self._pairs_seen
                self._pairs_seen += 1
                violations = list(row_violations(row, f"pairs[{place}]", self._limits))
                for violation in violations:
                    self._refuse(violation)
                if not violations:
                    self._note_row(row, line, place)
            self._spool.execute("COMMIT")

    def check_complete(self, pairs: int, images: int) -> None:
        """Raises InvalidArgument if the caller sent other numbers than came."""
        sent = {
            "close.pairs": (pairs, self._pairs_seen),
            "close.images": (images, self._images_seen),
        }
        wrong = [
            FieldViolation(field, f"says {said}, {came} came")
            for field, (said, came) in sent.items()
            if said != came
        ]
        if wrong:
            raise InvalidArgument.fields(wrong, reason="UPLOAD_INCOMPLETE")

    def finish(self) -> Staged:
        """Checks what goes together and writes the files of the dataset.

        Raises:
            InvalidArgument: names every bad row found.
            ResourceExhausted: the disk is full.
        """
        with self._open():
            self._images.close()
            self._check_references()
            if self._violations:
                raise InvalidArgument.fields(self._violations, reason="DATASET_INVALID")
            digest = self._write_pairs()
            index_digest = self._write_image_index()
            counts = self._count()
            manifest = {
                "format": 1,
                "counts": asdict(counts),
                "sha256": {PAIRS: digest, IMAGE_INDEX: index_digest},
            }
            (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
            self._spool.close()
            (self._folder / _SPOOL).unlink()
            self._closed = True
        return Staged(folder=self._folder, dataset_id=f"ds-{digest[:32]}", counts=counts)

    def discard(self) -> None:
        """Leaves nothing behind; does nothing after `finish`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._images.close()
            self._spool.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise RuntimeError("the upload has ended")
            try:
                yield
            except OSError as error:
                raise_if_disk_full(error)
                raise
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise _disk_full() from error
                raise

    def _refuse(self, violation: FieldViolation) -> None:
        self._violations.append(violation)
        if len(self._violations) >= self._limits.max_violations:
            raise InvalidArgument.fields(self._violations, reason="DATASET_INVALID")

    def _grow(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._limits.max_bytes:
            raise ResourceExhausted(
                f"the dataset has more than {self._limits.max_bytes} bytes",
                reason="DATASET_TOO_LARGE",
            )
        if self._checked_at == 0 or self._bytes - self._checked_at >= DISK_CHECK_BYTES:
            self._checked_at = self._bytes
            if shutil.disk_usage(self._folder).free < self._limits.min_free_disk_bytes:
                raise _disk_full()

    def _note_image(self, key: str, place: int, length: int) -> bool:
        """Whether the image is new."""
        added = self._spool.execute(
            "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)",
            (key, self._images.tell(), length, place),
        )
        return added.rowcount == 1

    def _note_row(self, row: Row, line: str, place: int) -> None:
        negatives = bool(row.negative_texts or row.negative_images)
        self._spool.execute(
            "INSERT OR IGNORE INTO pairs VALUES (?, ?, ?, ?, ?, ?, ?)",
            (row.image_key, line, row.text, row.group, row.label, negatives, place),
        )
        self._spool.executemany(
            "INSERT OR IGNORE INTO named VALUES (?, ?)", [(key, place) for key in row.images]
        )

    def _check_references(self) -> None:
        if not self._pairs_seen:
            self._refuse(FieldViolation("pairs", "the dataset has none"))
        for place, key in self._spool.execute(
            "SELECT place, image_key FROM named WHERE image_key NOT IN (SELECT key FROM images)"
            " ORDER BY place"
        ):
            self._refuse(FieldViolation(f"pairs[{place}].image_key", f"no image {key} came"))
        if self._violations:
            return  # an image may lack its pair only because that one is bad
        for place, key in self._spool.execute(
            "SELECT place, key FROM images WHERE key NOT IN (SELECT image_key FROM named)"
            " ORDER BY place"
        ):
            self._refuse(FieldViolation(f"images[{place}].key", f"no pair names image {key}"))

    def _write_pairs(self) -> str:
        """In an order that does not depend on that of the upload. Returns the sha256."""
        rows = self._spool.execute("SELECT line FROM pairs ORDER BY image_key, line")
        return _write_lines(self._folder / PAIRS, (line for (line,) in rows))

    def _write_image_index(self) -> str:
        rows = self._spool.execute("SELECT key, start, length FROM images ORDER BY start")
        return _write_lines(
            self._folder / IMAGE_INDEX,
            (
                json.dumps({"key": key, "start": start, "length": length})
                for key, start, length in rows
            ),
        )

    def _count(self) -> DatasetCounts:
        pairs, texts, groups, labels, uncaptioned, with_negatives = self._spool.execute(
            "SELECT count(*), count(DISTINCT nullif(text, '')), count(DISTINCT nullif(grp, '')),"
            " count(DISTINCT nullif(label, '')), count(*) FILTER (WHERE text = ''),"
            " count(*) FILTER (WHERE negatives) FROM pairs"
        ).fetchone()
        images = self._spool.execute("SELECT count(*) FROM images").fetchone()[0]
        # Not of the index: its offsets depend on the order of the upload.
        names = (IMAGES, PAIRS)
        return DatasetCounts(
            pairs=pairs,
            images=images,
            texts=texts,
            groups=groups,
            labels=labels,
            uncaptioned_pairs=uncaptioned,
            pairs_with_negatives=with_negatives,
            duplicate_pairs=self._pairs_seen - pairs,
            size_bytes=sum((self._folder / name).stat().st_size for name in names),
        )


def _write_lines(path: Path, lines: Iterator[str]) -> str:
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for line in lines:
            encoded = line.encode() + b"\n"
            digest.update(encoded)
            file.write(encoded)
    return digest.hexdigest()


def _disk_full() -> ResourceExhausted:
    return ResourceExhausted("the server's disk is nearly full", reason="DISK_FULL")
