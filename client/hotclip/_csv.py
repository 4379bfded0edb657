"""Pairs of a CSV file: the dialect and the columns are found from its beginning."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO

from hotclip._pairs import BadRow, ImagePair
from hotclip._records import NAMES, Places, field_of, pairs_of_record, printable
from hotclip.errors import FieldViolation, InvalidArgument

# In characters. What is longer than a line may be is cut, and a row that can't be read.
_SAMPLE, _LONGEST_LINE = 1 << 16, 1 << 20
_DELIMITERS = ",\t;|"


@dataclass(frozen=True)
class Dialect:
    """How cells are separated and quoted; `escapechar` stands before a quote inside of one."""

    delimiter: str = ","
    quotechar: str = '"'
    escapechar: str | None = None

    def rows(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """A csv.reader; raises csv.Error for a row and goes on with the next."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quotechar,
            escapechar=self.escapechar,
            doublequote=self.escapechar is None,
        )


class CsvRows:
    """The rows of an open file.

    Args:
        lines: Text, opened with newline="".
        name: The file's, for people.
        delimiter: None: found.
        columns: Fields of the columns of a file without a header; empty: found.
    """

    def __init__(
        self,
        lines: IO[str],
        name: str,
        places: Places,
        *,
        delimiter: str | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        self.notes: list[str] = []
        self._lines, self._name, self._places = lines, name, places
        self._columns: list[str | None] = [field_of(column) for column in columns]
        if not all(self._columns):
            known = ", ".join(NAMES)
            raise InvalidArgument.field("columns", f"{list(columns)}: known are {known}")
        # A quote or the end of a line can't separate cells.
        if delimiter is not None and (len(delimiter) != 1 or delimiter in "\"'\\\r\n"):
            raise InvalidArgument.field("delimiter", f"{delimiter!r} separates no cells")
        self._delimiter = delimiter

    def __iter__(self) -> Iterator[ImagePair | BadRow]:
        sample = self._lines.read(_SAMPLE)
        whole = len(sample) < _SAMPLE
        if sample.endswith("\r"):
            sample += self._lines.read(1)  # of one end of a line
        dialect, rows = _sniff(sample, whole, self._delimiter, self._places)
        columns = list(self._columns) or self._header(rows)
        skip = not self._columns and bool(columns)
        columns = columns or self._guess(rows)
        reader = csv_lines(dialect, _lines_after(sample, self._lines))
        for line, last, cells in reader:
            where = f"line {line}"
            if isinstance(cells, csv.Error):
                yield BadRow(where, "", f"not CSV: {cells}")
                yield from _swallowed(line, last)
            elif not any(cell.strip() for cell in cells):
                continue
            elif skip:
                skip = False
            elif any(cell.strip() for cell in cells[len(columns) :]):
                problem = f"{len(cells)} cells instead of {len(columns)}"
                hint = f"a text with {dialect.delimiter!r} needs quotes"
                yield BadRow(where, "", f"{problem}: {hint}")
            else:
                made = list(pairs_of_record(_record(columns, cells), where, self._places))
                yield from made
                if len(cells) < len(columns) and isinstance(made[0], BadRow):
                    yield from _swallowed(line, last)

    def _header(self, rows: Sequence[Sequence[str]]) -> list[str | None]:
        columns = _columns(rows[0]) if rows else []
        if not columns:
            return []
        unused = [printable(c) for c, f in zip(rows[0], columns, strict=True) if not f and c]
        if unused:
            self.notes = [f"{self._name}: columns that are not used: {', '.join(unused)}"]
        return columns

    def _guess(self, rows: Sequence[Sequence[str]]) -> list[str | None]:
        """Of a file without a header: text and image in either order, then score or label."""
        if not rows:
            return []
        width = len(rows[0])
        images = [_share_of_images(rows, column, self._places) for column in range(min(width, 2))]
        if width in (2, 3) and images[0] != images[1]:
            columns: list[str | None] = ["image", "text"]
            if images[1] > images[0]:
                columns.reverse()
            third = [row[2] for row in rows if len(row) > 2]
            return [*columns, _third(third)][:width]
        if width in (2, 3) and images[0]:
            raise self._misunderstood("both of the first two cells name an image file")
        raise self._misunderstood(
            "neither a header with an image column and a text or label column, nor two or three"
            " cells of which one of the first two names an image file"
        )

    def _misunderstood(self, problem: str) -> InvalidArgument:
        known = "; ".join(f"{field}: {', '.join(names)}" for field, names in NAMES.items())
        return InvalidArgument(
            f"{self._name}: line 1: {problem}. Names of columns are {known}",
            reason="PAIRS_INVALID",
            fields=[FieldViolation("line 1", problem)],
        )


def _swallowed(first: int, last: int) -> Iterator[BadRow]:
    """Lines that a quote has taken away from a row that is none: rows that nobody would miss."""
    for line in range(first + 1, last + 1):
        yield BadRow(f"line {line}", "", f"within the quotes that begin in line {first}")


def csv_lines(
    dialect: Dialect, lines: Iterable[str]
) -> Iterator[tuple[int, int, list[str] | csv.Error]]:
    """Rows, or why one can't be read, each with the numbers of its first and its last line."""
    reader = dialect.rows(lines)
    while True:
        first = reader.line_num + 1  # type: ignore[attr-defined]  # of csv.reader
        found: list[str] | csv.Error
        try:
            found = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = error
        yield first, reader.line_num, found  # type: ignore[attr-defined]  # of csv.reader


def _lines_after(sample: str, lines: IO[str]) -> Iterator[str]:
    """Lines of what was read already, then of the rest of the file."""
    head = io.StringIO(sample, newline="")
    for line in head:
        whole = line.endswith(("\n", "\r"))
        yield line if whole else line + lines.readline(_LONGEST_LINE)
    yield from iter(partial(lines.readline, _LONGEST_LINE), "")


def _columns(cells: Sequence[str]) -> list[str | None]:
    """Fields of a header; empty if it is none."""
    fields = [field_of(cell) for cell in cells]
    times = Counter(fields)
    single = all(times[f] <= 1 for f in ("text", "image", "group", "label", "score"))
    if single and times["image"] and (times["text"] or times["label"]):
        return fields
    return []


def _record(columns: Sequence[str | None], cells: Sequence[str]) -> dict[str, object]:
    record, negatives = dict[str, object](), dict[str, list[str]]()
    for field, cell in zip(columns, cells, strict=False):
        if field in ("negative_texts", "negative_images"):
            if cell:
                negatives.setdefault(field, []).append(cell)
        elif field:
            record[field] = cell
    return record | negatives


def _third(cells: Sequence[str]) -> str:
    """Numbers within 0..1, some with a point, are scores; anything else is a label."""
    try:
        numbers = [float(cell) for cell in cells if cell.strip()]
    except ValueError:
        return "label"
    scores = all(0 <= n <= 1 for n in numbers) and any("." in cell for cell in cells)
    return "score" if scores else "label"


def _share_of_images(rows: Sequence[Sequence[str]], column: int, places: Places) -> float:
    named = [row[column] for row in rows[:50] if len(row) > column]
    return sum(map(places.has, named)) / len(named) if named else 0.0


def _sniff(
    sample: str, whole: bool, delimiter: str | None, places: Places
) -> tuple[Dialect, list[list[str]]]:
    """The dialect that makes most of the sample, and the rows that it makes of it.

    Best is a header, then rows that name an image, then rows of equal width.
    """
    best: tuple[tuple[bool, float, float], Dialect, list[list[str]]] | None = None
    for sign in delimiter or _DELIMITERS:
        for quote, escape in (('"', None), ('"', "\\"), ("'", None)):
            dialect = Dialect(sign, quote, escape)
            if dialect != Dialect(sign) and f"{escape or ''}{quote}" not in sample:
                continue
            rows = _sampled(dialect, sample, whole)
            value = _value(rows, places)
            if best is None or value > best[0]:
                best = (value, dialect, rows)
    if best is None:
        raise RuntimeError("no dialect was tried. This is a bug.")
    return best[1], best[2]


def _sampled(dialect: Dialect, sample: str, whole: bool) -> list[list[str]]:
    lines = csv_lines(dialect, io.StringIO(sample, newline=""))
    rows = [cells for _, _, cells in lines if not isinstance(cells, csv.Error)]
    rows = [cells for cells in rows if any(cell.strip() for cell in cells)]
    return rows if whole or len(rows) < 2 else rows[:-1]


def _value(rows: Sequence[Sequence[str]], places: Places) -> tuple[bool, float, float]:
    if not rows:
        return False, 0.0, 0.0
    columns = _columns(rows[0])
    if columns:
        image = columns.index("image")
        images = _share_of_images(rows[1:], image, places)
    else:
        images = sum(_share_of_images(rows, column, places) for column in range(2))
    widths = Counter(map(len, rows))
    width, times = widths.most_common(1)[0]
    return bool(columns), images, times / len(rows) if width > 1 else 0.0
