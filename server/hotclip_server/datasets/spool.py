"""The rows of an upload on the disk: order, duplicates and references need no memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hotclip_server.datasets.report import BadRow
from hotclip_server.datasets.rows import ImageFacts, Row

_TABLES = """
CREATE TABLE state (value TEXT);
CREATE TABLE images (key TEXT PRIMARY KEY, start INTEGER, length INTEGER, place INTEGER,
    format TEXT, width INTEGER, height INTEGER, problem TEXT, kept INTEGER) WITHOUT ROWID;
CREATE TABLE pairs (image_key TEXT, line TEXT, text TEXT, grp TEXT, label TEXT,
    negatives INTEGER, place INTEGER, source TEXT, copies INTEGER, bad INTEGER,
    PRIMARY KEY (image_key, line)) WITHOUT ROWID;
CREATE TABLE named (image_key TEXT, place INTEGER, field TEXT, PRIMARY KEY (image_key, place))
    WITHOUT ROWID;
CREATE TABLE rejected (source TEXT, field TEXT, reason TEXT);
"""


class Spool:
    """A database of one upload. What came since the last `commit` is gone after a crash."""

    def __init__(self, path: Path) -> None:
        is_new = not path.exists()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        if is_new:
            self._db.executescript(_TABLES)
        self._db.execute("BEGIN")

    def read_state(self) -> dict[str, Any]:
        """As the last `commit` wrote it; empty for a new upload."""
        row = self._db.execute("SELECT value FROM state").fetchone()
        state: dict[str, Any] = json.loads(row[0]) if row else {}
        return state

    def commit(self, state: dict[str, Any]) -> None:
        """Makes everything so far durable, together with `state`."""
        self._db.execute("DELETE FROM state")
        self._db.execute("INSERT INTO state VALUES (?)", (json.dumps(state),))
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def close(self) -> None:
        """Forgets what was not committed."""
        self._db.close()

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Whatever is changed inside is as before afterwards."""
        self._db.execute("SAVEPOINT trial")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK TO trial")
            self._db.execute("RELEASE trial")

    def add_image(self, key: str, start: int, length: int, place: int, facts: ImageFacts) -> bool:
        """Whether the image is new."""
        added = self._db.execute(
            "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (key, start, length, place, facts.format, facts.width, facts.height, facts.problem),
        )
        return added.rowcount == 1

    def add_row(self, row: Row, line: str, place: int) -> None:
        """Keeps a row; one that was there before is counted."""
        negatives = bool(row.negative_texts or row.negative_images)
        self._db.execute(
            "INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, 0)"
            " ON CONFLICT DO UPDATE SET copies = copies + 1",
            (row.image_key, line, row.text, row.group, row.label, negatives, place, row.where),
        )

    def add_names(self, row: Row, place: int) -> None:
        """Notes which images a row names, be it good or bad."""
        names = [(row.image_key, place, "image")]
        names += [(key, place, "negative_images") for key in row.negative_images]
        self._db.executemany("INSERT OR IGNORE INTO named VALUES (?, ?, ?)", names)

    def reject(self, row: BadRow) -> None:
        """Lists a bad row."""
        self._db.execute(
            "INSERT INTO rejected VALUES (?, ?, ?)", (row.where, row.field, row.reason)
        )

    def rejected(self) -> Sequence[BadRow]:
        """All that are listed, in order."""
        found = self._db.execute("SELECT source, field, reason FROM rejected ORDER BY rowid")
        return [BadRow(*row) for row in found]

    def unused_images(self, most: int) -> Sequence[tuple[int, str]]:
        """Place and key of images that no row names."""
        return self._db.execute(
            "SELECT place, key FROM images WHERE key NOT IN (SELECT image_key FROM named)"
            " ORDER BY place LIMIT ?",
            (most,),
        ).fetchall()

    def settle(self) -> Iterator[tuple[BadRow, int]]:
        """Decides which rows and images are kept; gives the others' rows with their copies.

        They name an image that is bad or never came. An image that only bad rows name is not
        kept: it stays a gap in the file.
        """
        self._db.execute("CREATE INDEX places ON pairs (place)")
        found = self._db.execute(
            "SELECT n.place, n.field, i.problem FROM named n LEFT JOIN images i"
            " ON i.key = n.image_key WHERE i.key IS NULL OR i.problem != '' ORDER BY n.place"
        )
        for place, field, problem in found:
            row = self._db.execute(
                "UPDATE pairs SET bad = 1 WHERE place = ? AND NOT bad RETURNING source, copies",
                (place,),
            ).fetchone()
            if row is not None:
                yield BadRow(row[0], field, problem or "the image never came"), row[1]
        self._db.execute(
            "UPDATE images SET kept = 1 WHERE key IN (SELECT n.image_key FROM named n"
            " JOIN pairs p ON p.place = n.place WHERE NOT p.bad)"
        )

    def lines(self) -> Iterator[str]:
        """The good rows, in an order that does not depend on that of the upload."""
        rows = self._db.execute("SELECT line FROM pairs WHERE NOT bad ORDER BY image_key, line")
        return (line for (line,) in rows)

    def images(self) -> Iterator[tuple[str, int, int]]:
        """Key, start and length of the images of good rows, by start."""
        yield from self._db.execute(
            "SELECT key, start, length FROM images WHERE kept ORDER BY start"
        )

    def counts(self) -> dict[str, int]:
        """Of the good rows, as `DatasetCounts` names them."""
        rows = self._db.execute(
            "SELECT count(*) AS pairs, count(DISTINCT nullif(text, '')) AS texts,"
            " count(DISTINCT nullif(grp, '')) AS groups,"
            " count(DISTINCT nullif(label, '')) AS labels,"
            " count(*) FILTER (WHERE text = '') AS uncaptioned_pairs,"
            " count(*) FILTER (WHERE negatives) AS pairs_with_negatives,"
            " ifnull(sum(copies - 1), 0) AS duplicate_pairs FROM pairs WHERE NOT bad"
        )
        images = self._db.execute(
            "SELECT count(*) AS images, ifnull(sum(length), 0) AS size_bytes FROM images WHERE kept"
        )
        return _named(rows) | _named(images)

    def findings(self) -> dict[str, Any]:
        """Of the good rows, as `DatasetReport` names them."""
        several = (
            "SELECT count(*) AS {} FROM (SELECT 1 FROM pairs WHERE NOT bad AND text != ''"
            " GROUP BY {} HAVING count(DISTINCT {}) > 1)"
        )
        found = _named(
            self._db.execute(several.format("images_with_several_texts", "image_key", "text"))
        )
        found |= _named(
            self._db.execute(several.format("texts_with_several_images", "text", "image_key"))
        )
        found |= _named(
            self._db.execute(
                "SELECT ifnull(min(width), 0) AS min_width, ifnull(max(width), 0) AS max_width,"
                " ifnull(min(height), 0) AS min_height, ifnull(max(height), 0) AS max_height,"
                " ifnull(min(length), 0) AS min_image_bytes,"
                " ifnull(max(length), 0) AS max_image_bytes FROM images WHERE kept"
            )
        )
        text = self._db.execute(
            "SELECT substr(text, 1, 256), count(*) AS pairs FROM pairs"
            " WHERE NOT bad AND text != '' GROUP BY text HAVING pairs > 1"
            " ORDER BY pairs DESC, text LIMIT 1"
        ).fetchone()
        formats = self._db.execute(
            "SELECT format, count(*) FROM images WHERE kept GROUP BY format ORDER BY format"
        )
        return {
            **found,
            "most_frequent_text": text[0] if text else "",
            "most_frequent_text_pairs": text[1] if text else 0,
            "formats": dict(formats.fetchall()),
        }


def _named(cursor: sqlite3.Cursor) -> dict[str, int]:
    names = [column[0] for column in cursor.description]
    return dict(zip(names, cursor.fetchone(), strict=True))
