"""Checks of single rows of an upload: what is wrong with which field."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from PIL import Image

from hotclip_server.datasets.records import DatasetLimits
from hotclip_server.encoding.image_header import DamagedHeader, UnknownFormat, read_header
from hotclip_server.errors import DataLoss, FieldViolation

KEY = re.compile(r"[0-9a-f]{64}")

_DECODE_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's word for a broken PNG
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    TypeError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True)
class Row:
    """A pair or a labelled image as uploaded; an empty text, group or label is none."""

    image_key: str
    text: str
    group: str = ""
    label: str = ""
    score: float = 1.0
    negative_texts: tuple[str, ...] = ()
    negative_images: tuple[str, ...] = ()
    where: str = field(default="", compare=False)
    """How the caller names the row, e.g. "line 4"; not stored."""

    def at(self, where: str) -> Row:
        """The same, named."""
        return replace(self, where=where)

    @property
    def images(self) -> tuple[str, ...]:
        """Keys of every image that it names."""
        return (self.image_key, *self.negative_images)

    def line(self) -> str:
        """As it is stored: JSON without what is absent, so that equal rows are equal lines."""
        found: dict[str, object] = {"image": self.image_key, "text": self.text}
        if self.group:
            found["group"] = self.group
        if self.label:
            found["label"] = self.label
        if self.score != 1:
            found["score"] = self.score
        if self.negative_texts:
            found["negative_texts"] = self.negative_texts
        if self.negative_images:
            found["negative_images"] = self.negative_images
        return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def row_violations(row: Row, limits: DatasetLimits) -> Iterator[FieldViolation]:
    """What is wrong with a row, by itself."""
    if not KEY.fullmatch(row.image_key):
        yield FieldViolation("image", "must be a sha256 in lower-case hex")
    if not row.text.strip() and (row.text or not row.label.strip()):
        yield FieldViolation("text", "is empty")
    if not 0 <= row.score <= 1:
        yield FieldViolation("score", f"must be within 0..1, is {row.score}")
    for name, value, most in (
        ("text", row.text, limits.max_text_bytes),
        ("group", row.group, limits.max_group_bytes),
        ("label", row.label, limits.max_group_bytes),
        *((f"negative_texts[{i}]", t, limits.max_text_bytes) for i, t in _numbered(row)),
    ):
        size = len(value.encode())
        if size > most:
            yield FieldViolation(name, f"has {size} bytes, the limit is {most}")
    yield from _negative_violations(row, limits)


def _negative_violations(row: Row, limits: DatasetLimits) -> Iterator[FieldViolation]:
    for name, count in (
        ("negative_texts", len(row.negative_texts)),
        ("negative_images", len(row.negative_images)),
    ):
        if count > limits.max_negatives:
            problem = f"has {count} entries, the limit is {limits.max_negatives}"
            yield FieldViolation(name, problem)
    for i, text in _numbered(row):
        if not text.strip():
            yield FieldViolation(f"negative_texts[{i}]", "is empty")
        elif text == row.text:
            yield FieldViolation(f"negative_texts[{i}]", "is the text of the row itself")
    for i, key in enumerate(row.negative_images):
        if not KEY.fullmatch(key):
            problem = "must be a sha256 in lower-case hex"
            yield FieldViolation(f"negative_images[{i}]", problem)
        elif key == row.image_key:
            problem = "is the image of the row itself"
            yield FieldViolation(f"negative_images[{i}]", problem)


def _numbered(row: Row) -> Iterator[tuple[int, str]]:
    return iter(enumerate(row.negative_texts))


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of an image; `problem` says why it can't be used, empty if it can."""

    format: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def image_facts(key: str, data: bytes, limits: DatasetLimits) -> ImageFacts:
    """Reads and checks an image; decodes all of it.

    Raises:
        DataLoss: `key` is not the sha256 of `data`; reason CHECKSUM.
    """
    if hashlib.sha256(data).hexdigest() != key:
        raise DataLoss(f"image {key}: not the sha256 of the data that came", reason="CHECKSUM")
    if len(data) > limits.max_image_bytes:
        return ImageFacts(problem=f"has {len(data)} bytes, the limit is {limits.max_image_bytes}")
    try:
        header = read_header(data)
    except UnknownFormat:
        return ImageFacts(problem="is not a JPEG, PNG or WebP file")
    except DamagedHeader as error:
        return ImageFacts(problem=f"cannot be read: {error}")
    problem = _size_problem(header.width, header.height, limits)
    if not problem:
        problem = _decoding_problem(data, header.format, limits)
    return ImageFacts(header.format, header.width, header.height, problem)


def _decoding_problem(data: bytes, file_format: str, limits: DatasetLimits) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=(file_format,)) as image:
            # Of a file with several headers Pillow may have taken another one's size.
            if problem := _size_problem(*image.size, limits):
                return problem
            image.load()
    except _DECODE_ERRORS as error:
        return f"cannot be decoded: {error}"
    return ""


def _size_problem(width: int, height: int, limits: DatasetLimits) -> str:
    if width * height > limits.max_image_pixels:
        return f"has {width} x {height} pixels, the limit is {limits.max_image_pixels}"
    return ""
