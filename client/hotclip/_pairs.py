"""Pairs of a text and an image that belong together, and labelled images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hotclip._inputs import Image, ImageLike, Text, image_of
from hotclip.errors import MOST_NAMED, FieldViolation, InvalidArgument

# Bad rows that are kept; the others are counted.
_MAX_KEPT = 1000


@dataclass(frozen=True)
class Pair:
    """A text and an image that belong together, or a labelled image: Pair("", image, label=…).

    `image` is a pathlib.Path, encoded bytes, a uint8 array, a PIL image or an Image.
    """

    text: str
    image: Path | bytes | NDArray[np.uint8] | Image | Any
    group: str = ""
    """Pairs of one group, such as a product, belong together: each is right for the other's query,
    and none is held out while others are trained on; empty: none."""
    label: str = ""
    """Name of the class that the image belongs to; empty: none."""
    score: float = 1.0
    """How well text and image fit, 0 to 1."""
    negative_texts: Sequence[str] = ()
    """Texts that are wrong for this image though they look right."""
    negative_images: Sequence[ImageLike] = ()
    """Images that are wrong for this text though they look right."""


PairLike: TypeAlias = "Pair | tuple[Any, Any]"


@dataclass(frozen=True)
class ImagePair:
    """A checked pair, its images not read yet; as Pair."""

    text: str
    image: Image
    where: str
    """Names the pair for people: "pairs[3]" or "line 4"."""
    group: str = ""
    label: str = ""
    score: float = 1.0
    negative_texts: tuple[str, ...] = ()
    negative_images: tuple[Image, ...] = ()


@dataclass(frozen=True)
class BadRow:
    """A row that is not stored."""

    where: str
    """"line 4", "sample 000017" or "pairs[3]"."""
    field: str
    """"text", "image" …; empty: the row as a whole."""
    reason: str

    def __str__(self) -> str:
        field = f" ({self.field})" if self.field else ""
        return f"{self.where}{field}: {self.reason}"


class Rows(Protocol):
    """Where pairs come from."""

    name: str
    """For people: a file's name or "pairs"."""
    rereadable: bool
    """Whether it can be gone through more than once."""
    notes: Sequence[str]
    """What the last time through it was remarked that concerns no single row."""

    def __iter__(self) -> Iterator[ImagePair | BadRow]: ...


class ListedRows:
    """Pairs of a list or another iterable."""

    name = "pairs"
    notes: Sequence[str] = ()

    def __init__(self, data: Iterable[object]) -> None:
        self.rereadable = not isinstance(data, Iterator)
        self._data = data

    def __iter__(self) -> Iterator[ImagePair | BadRow]:
        for index, value in enumerate(self._data):
            where = f"pairs[{index}]"
            try:
                yield _checked(value, where)
            except InvalidArgument as error:
                first = error.fields[0]
                yield BadRow(where, first.field, first.reason)


def _checked(value: object, where: str) -> ImagePair:
    """Raises InvalidArgument naming the field."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 2:
        texts = [isinstance(part, str | Text) for part in value]
        if sum(texts) != 1:
            hint = "two texts: an image file is a pathlib.Path" if all(texts) else "no text"
            raise InvalidArgument.field("", hint)
        text, image = value if texts[0] else reversed(value)
        value = Pair(text, image)
    if not isinstance(value, Pair):
        raise InvalidArgument.field("", "neither a Pair nor a (text, image) tuple")
    return ImagePair(
        text=text_of(value.text, "text", empty=bool(value.label)),
        image=_present(value.image, "image"),
        where=where,
        group=text_of(value.group, "group", empty=True),
        label=text_of(value.label, "label", empty=True),
        score=score_of(value.score),
        negative_texts=tuple(text_of(text, "negative_texts") for text in value.negative_texts),
        negative_images=tuple(_present(i, "negative_images") for i in value.negative_images),
    )


def _present(value: object, field: str) -> Image:
    """An image; if it is a file, it is there."""
    image = image_of(value, field)
    if image.source and "://" not in image.source and not Path(image.source).is_file():
        raise InvalidArgument.field(field, f"no such image: {image.source}")
    return image


def text_of(value: object, field: str, *, empty: bool = False) -> str:
    """A text that can be sent.

    Raises:
        InvalidArgument: It is no text, not Unicode, or empty and must not be.
    """
    text = value.text if isinstance(value, Text) else value
    if not isinstance(text, str):
        raise InvalidArgument.field(field, f"{type(text).__name__} is no str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument.field(field, "not valid Unicode") from error
    if not text.strip() and (text or not empty):
        raise InvalidArgument.field(field, "empty")
    return text


def score_of(value: object) -> float:
    """A score within 0..1; raises InvalidArgument."""
    try:
        score = float(value)  # type: ignore[arg-type]  # what is no number is told below
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise InvalidArgument.field("score", f"{value!r} is no number within 0..1")
    return score


@dataclass(frozen=True)
class Tolerance:
    """How many bad rows there may be; the larger of the two holds."""

    max_bad_rows: int = 0
    max_bad_share: float = 0.0

    def __post_init__(self) -> None:
        if self.max_bad_rows < 0:
            raise InvalidArgument.field("max_bad_rows", f"{self.max_bad_rows} is less than 0")
        if not 0 <= self.max_bad_share <= 1:
            raise InvalidArgument.field("max_bad_share", f"{self.max_bad_share} is not within 0..1")

    def allowed(self, rows: int) -> int:
        """Of so many rows."""
        return max(self.max_bad_rows, math.floor(self.max_bad_share * rows + 1e-9))


def check(rows: Rows, tolerance: Tolerance) -> int:
    """Goes through all rows once, without reading images, and gives their number.

    Raises:
        InvalidArgument: Too many bad rows, or none at all (reason PAIRS_INVALID), each named
            by its line or position in `fields`, at most 1,000.
    """
    count, bad, kept = 0, 0, list[BadRow]()
    for row in rows:
        count += 1
        if isinstance(row, BadRow):
            bad += 1
            if len(kept) < _MAX_KEPT:
                kept.append(row)
    if bad > tolerance.allowed(count) or (bad and bad == count):
        raise invalid(rows.name, kept, bad, count, reason="PAIRS_INVALID")
    if not count:
        raise InvalidArgument.field(rows.name, "no row at all", reason="PAIRS_INVALID")
    return count


def invalid(
    source: str, listed: Sequence[BadRow], bad: int, count: int, *, reason: str
) -> InvalidArgument:
    """The error that names bad rows."""
    fields = [
        FieldViolation(f"{row.where}.{row.field}" if row.field else row.where, row.reason)
        for row in listed
    ]
    named = "; ".join(f"{v.field}: {v.reason}" for v in fields[:MOST_NAMED])
    more = bad - min(len(listed), MOST_NAMED)
    tail = f"; and {more} more" if more > 0 else ""
    return InvalidArgument(
        f"{source}: {bad} of {count} rows are bad: {named}{tail}",
        reason=reason,
        fields=fields,
    )
