"""Pairs of a text and an image that belong together, from lists and from files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hotclip._inputs import Image, Text, image_of
from hotclip.errors import FieldViolation, InvalidArgument

# Errors named one by one before the rest is only counted.
_MAX_NAMED = 20

_TEXT_NAMES = {"text", "caption", "title", "query", "label"}
_IMAGE_NAMES = {"image", "path", "image_path", "file", "filepath", "filename"}
_GROUP_NAMES = {"group"}


@dataclass(frozen=True)
class Pair:
    """A text and an image that belong together.

    `image` is a pathlib.Path, encoded bytes, a uint8 array, a PIL image or an Image. Pairs
    of one `group` are positives of each other; empty: none but itself.
    """

    text: str
    image: Path | bytes | NDArray[np.uint8] | Image | Any
    group: str = ""


PairLike: TypeAlias = "Pair | tuple[Any, Any]"


@dataclass(frozen=True)
class ImagePair:
    """A checked pair, its image not read yet."""

    text: str
    image: Image
    group: str
    where: str
    """Names the pair in an error: "pairs[3]" or "line 4"."""


class _Problems:
    def __init__(self, source: str) -> None:
        self._source = source
        self._found: list[FieldViolation] = []

    def add(self, field: str, problem: str) -> None:
        self._found.append(FieldViolation(field, problem))

    def check(self) -> None:
        if not self._found:
            return
        named = "; ".join(f"{v.field}: {v.reason}" for v in self._found[:_MAX_NAMED])
        more = len(self._found) - _MAX_NAMED
        tail = f"; and {more} more" if more > 0 else ""
        message = f"{self._source}: {len(self._found)} bad: {named}{tail}"
        raise InvalidArgument(message, reason="PAIRS_INVALID", fields=self._found)


def pairs_of(data: object) -> list[ImagePair]:
    """Checks pairs from a CSV or JSONL file or from a list; images are not read yet.

    Raises:
        InvalidArgument: Bad pairs, each named by line or position (reason PAIRS_INVALID).
    """
    if isinstance(data, Path):
        return read_pairs(data)
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise InvalidArgument.field("pairs", "neither a pathlib.Path nor a list of pairs")
    problems, found = _Problems("pairs"), []
    for index, value in enumerate(data):
        try:
            found.append(_pair(value, f"pairs[{index}]"))
        except InvalidArgument as error:
            for violation in error.fields:
                problems.add(violation.field, violation.reason)
    problems.check()
    if not found:
        problems.add("pairs", "empty")
    problems.check()
    return found


def _pair(value: object, where: str) -> ImagePair:
    group = ""
    if isinstance(value, Pair):
        text, image, group = value.text, value.image, value.group
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 2:
        texts = [isinstance(part, str | Text) for part in value]
        if sum(texts) != 1:
            hint = "two texts: an image file is a pathlib.Path" if all(texts) else "no text"
            raise InvalidArgument.field(where, hint)
        text, image = value if texts[0] else reversed(value)
    else:
        raise InvalidArgument.field(where, "neither a Pair nor a (text, image) tuple")
    text = text.text if isinstance(text, Text) else text
    if not isinstance(text, str) or not text.strip():
        raise InvalidArgument.field(f"{where}.text", "empty")
    return ImagePair(text, image_of(image, f"{where}.image"), group, where)


def read_pairs(file: Path) -> list[ImagePair]:
    """Pairs of a CSV (.csv, .tsv) or JSON lines (.jsonl, .ndjson) file.

    A row has a text and an image path, relative to the file's folder, and may have a group.
    Columns are known by a header (or keys) such as text, image and group. Without one, a row
    has two cells, and the image's is the one that names a file in the first row.

    Raises:
        InvalidArgument: Bad rows, each named by its line (reason PAIRS_INVALID).
    """
    problems = _Problems(file.name)
    try:
        rows = list((_csv_rows if _is_csv(file) else _json_rows)(file, problems))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgument.field("path", f"{file}: {error}") from error
    found = []
    for line, text, name, group in rows:
        image = file.parent / name
        if not text.strip():
            problems.add(f"line {line}", "no text")
        elif not name or not _is_file(image):
            problems.add(f"line {line}", f"no such image: {name or 'empty'}")
        else:
            found.append(ImagePair(text, Image.from_path(image), group, f"line {line}"))
    problems.check()
    if not found:
        problems.add("line 1", "no row at all")
    problems.check()
    return found


def _is_csv(file: Path) -> bool:
    kind = file.suffix.lower()
    if kind in {".csv", ".tsv"}:
        return True
    if kind in {".jsonl", ".ndjson"}:
        return False
    raise InvalidArgument.field("path", f"{file}: neither .csv, .tsv, .jsonl nor .ndjson")


Row: TypeAlias = tuple[int, str, str, str]  # line, text, image path, group


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # e.g. a text that is too long to be a name
        return False


def _csv_rows(file: Path, problems: _Problems) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        columns: tuple[int, int, int | None] | None = None
        known = 0  # cells that a row may have
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns, known = _header(cells), len(cells)
                if columns:
                    continue
                columns = _by_file(file, reader.line_num, cells)
            if any(cell.strip() for cell in cells[known:]):
                problem = f"{len(cells)} cells instead of {known}: a text with a comma needs quotes"
                problems.add(f"line {reader.line_num}", problem)
                continue
            text, image, group = columns
            width = max(text, image) + 1
            padded = cells + [""] * (width - len(cells))
            told = cells[group] if group is not None and group < len(cells) else ""
            yield reader.line_num, padded[text], padded[image], told


def _header(cells: Sequence[str]) -> tuple[int, int, int | None] | None:
    names = [cell.strip().lower() for cell in cells]
    text = [i for i, name in enumerate(names) if name in _TEXT_NAMES]
    image = [i for i, name in enumerate(names) if name in _IMAGE_NAMES]
    group = [i for i, name in enumerate(names) if name in _GROUP_NAMES]
    if len(text) != 1 or len(image) != 1:
        return None
    return text[0], image[0], group[0] if group else None


def _by_file(file: Path, line: int, cells: Sequence[str]) -> tuple[int, int, None]:
    files = [i for i, cell in enumerate(cells) if cell and _is_file(file.parent / cell)]
    if len(cells) != 2 or len(files) != 1:
        raise InvalidArgument(
            f"{file.name}: line {line}: neither a header with a text and an image column nor"
            f" two cells of which exactly one names an image file (found {len(files)})",
            reason="PAIRS_INVALID",
            fields=[FieldViolation(f"line {line}", "columns not understood")],
        )
    return 1 - files[0], files[0], None


def _json_rows(file: Path, problems: _Problems) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                problems.add(f"line {number}", f"not JSON: {error.msg}")
                continue
            if not isinstance(row, dict):
                problems.add(f"line {number}", "no object with text and image")
                continue
            known = {str(key).lower(): value for key, value in row.items()}
            text = next((known[n] for n in known if n in _TEXT_NAMES), None)
            image = next((known[n] for n in known if n in _IMAGE_NAMES), None)
            if not isinstance(text, str) or not isinstance(image, str):
                problems.add(f"line {number}", "needs a text and an image, both strings")
                continue
            group = known.get("group")
            yield number, text, image, "" if group is None else str(group)
