"""Checks of single rows of an upload: what is wrong with which field."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

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
    """A pair as uploaded; an empty group is none."""

    image_key: str
    text: str
    group: str = ""


def pair_violations(row: Row, path: str, limits: DatasetLimits) -> Iterator[FieldViolation]:
    """What is wrong with a pair, by itself."""
    if not KEY.fullmatch(row.image_key):
        yield FieldViolation(f"{path}.image_key", "must be a sha256 in lower-case hex")
    if not row.text.strip():
        yield FieldViolation(f"{path}.text", "is empty")
    for name, value, most in (
        ("text", row.text, limits.max_text_bytes),
        ("group", row.group, limits.max_group_bytes),
    ):
        size = len(value.encode())
        if size > most:
            yield FieldViolation(f"{path}.{name}", f"has {size} bytes, the limit is {most}")


def image_violation(
    key: str, data: bytes, path: str, limits: DatasetLimits
) -> FieldViolation | None:
    """What is wrong with an image; decodes all of it.

    Raises:
        DataLoss: `key` is not the sha256 of `data`; reason CHECKSUM.
    """
    if not KEY.fullmatch(key):
        return FieldViolation(f"{path}.key", "must be the sha256 of data in lower-case hex")
    if hashlib.sha256(data).hexdigest() != key:
        raise DataLoss(f"{path}: key is not the sha256 of the data that came", reason="CHECKSUM")
    problem = _image_problem(data, limits)
    return FieldViolation(f"{path}.data", problem) if problem else None


def _image_problem(data: bytes, limits: DatasetLimits) -> str:
    if len(data) > limits.max_image_bytes:
        return f"has {len(data)} bytes, the limit is {limits.max_image_bytes}"
    try:
        header = read_header(data)
    except UnknownFormat:
        return "is not a JPEG, PNG or WebP file"
    except DamagedHeader as error:
        return f"cannot be read: {error}"
    if problem := _size_problem(header.width, header.height, limits):
        return problem
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
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
