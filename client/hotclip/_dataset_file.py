"""Files of pairs, each by its suffix."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from hotclip._csv import CsvRows
from hotclip._jsonl import JsonRows
from hotclip._pairs import BadRow, ImagePair, ListedRows, PairLike, Rows
from hotclip._records import Places
from hotclip._webdataset import TarRows
from hotclip.errors import InvalidArgument

_CSV, _JSON = (".csv", ".tsv"), (".jsonl", ".ndjson")
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class DatasetFile:
    """A file of pairs with how to read it; a pathlib.Path alone is the same with the defaults.

    CSV (.csv, .tsv): a row a pair. A header names the columns, in any order: `image` (a path
    beside the file, or a URL), `text`, and perhaps `label`, `group`, `score` (0 to 1),
    `negative_text` and `negative_image`, these two more than once. Usual other names do, such
    as caption or image_path. Without a header a row has an image path and a text in either
    order, and perhaps a third cell: a score if all of them are numbers from 0 to 1 of which
    some have a point, else a label. A text with the delimiter needs quotes.

    JSON lines (.jsonl, .ndjson): an object a pair, with the same names; `text` may be a list,
    which makes a pair of each, and so may `negative_texts` and `negative_images`.

    WebDataset (.tar, also compressed, or a folder of them): files with the same name before
    the first dot are a sample: .jpg, .jpeg, .png or .webp, with .txt (the text), .json (an
    object as above) or .cls (a label).
    """

    path: Path | str
    encoding: str = "utf-8"
    """Of CSV and JSON lines, as Python names it; a byte order mark comes before it."""
    delimiter: str | None = None
    """Of CSV; None: found."""
    columns: Sequence[str] = ()
    """Of a CSV without a header, e.g. ("image", "label"); empty: found."""
    fetch_urls: bool = False
    """Whether images behind http and https URLs are fetched, by this client."""


PairSource: TypeAlias = "Path | DatasetFile | Iterable[PairLike]"


class FileRows:
    """The rows of a file or of a folder of tars."""

    rereadable = True

    def __init__(self, told: DatasetFile) -> None:
        self.notes: Sequence[str] = ()
        try:
            codecs.lookup(told.encoding)
        except LookupError as error:
            raise InvalidArgument.field("encoding", str(error)) from error
        self._told = told
        self._path = Path(told.path)
        self.name = self._path.name
        self._files = [self._path]
        if self._path.is_dir():
            self._files = sorted(p for p in self._path.iterdir() if p.name.lower().endswith(_TAR))
            if not self._files:
                raise InvalidArgument.field("path", f"{self._path} is a folder without a tar")
        elif not self._path.name.lower().endswith((*_CSV, *_JSON, *_TAR)):
            known = ", ".join((*_CSV, *_JSON, *_TAR))
            raise InvalidArgument.field("path", f"{self._path}: its suffix is none of {known}")

    def __iter__(self) -> Iterator[ImagePair | BadRow]:
        self.notes = ()
        for file in self._files:
            try:
                yield from self._of(file)
            except UnicodeError as error:
                problem = f"{file} is not {self._told.encoding}: {error}"
                raise InvalidArgument.field("encoding", problem) from error
            except OSError as error:
                raise InvalidArgument.field("path", f"{file}: {error}") from error

    def _of(self, file: Path) -> Iterator[ImagePair | BadRow]:
        told, kind = self._told, file.name.lower()
        places = Places(file.parent, told.fetch_urls, told.encoding)
        if kind.endswith(_TAR):
            with file.open("rb") as data:
                yield from self._noted(TarRows(data, file.name, places))
            return
        encoding = _encoding(file, told.encoding)
        # Bytes that are not of the encoding spoil their row, not the file.
        with file.open(encoding=encoding, errors="surrogateescape", newline="") as lines:
            if kind.endswith(_JSON):
                yield from self._noted(JsonRows(lines, places))
                return
            delimiter = told.delimiter or ("\t" if kind.endswith(".tsv") else None)
            yield from self._noted(
                CsvRows(lines, file.name, places, delimiter=delimiter, columns=told.columns)
            )

    def _noted(self, rows: CsvRows | JsonRows | TarRows) -> Iterator[ImagePair | BadRow]:
        yield from rows
        self.notes = [*self.notes, *rows.notes]


def _encoding(file: Path, told: str) -> str:
    with file.open("rb") as data:
        start = data.read(4)
    # UTF-32 before UTF-16, whose mark is the beginning of the other's.
    for mark, name in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
        (codecs.BOM_UTF8, "utf-8-sig"),
    ):
        if start.startswith(mark):
            return name
    return told


def names_file(text: str) -> bool:
    """Whether a file of this name is here: a caller may have meant it where a str is a dataset."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long, or no name at all
        return False


def rows_of(data: object) -> Rows:
    """Where the pairs of an argument come from.

    Raises:
        InvalidArgument: It is none of the forms, or a file of an unknown kind.
    """
    if isinstance(data, Path):
        return FileRows(DatasetFile(data))
    if isinstance(data, DatasetFile):
        return FileRows(data)
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise InvalidArgument.field(
            "pairs", "neither a pathlib.Path, a DatasetFile nor a list of pairs"
        )
    return ListedRows(data)


def rereadable_rows_of(data: object) -> Rows:
    """As `rows_of`, for going through more than once: an iterator becomes a list."""
    return rows_of(list(data) if isinstance(data, Iterator) else data)
