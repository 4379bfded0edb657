"""Format and size of an image, read from its headers; nothing is decoded or allocated."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_JPEG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
"""The end, and markers that a length follows; escapes, fill and restarts are passed over."""

MAX_JPEG_SCANS = 100
"""Each goes over all pixels again; encoders make about ten."""
MAX_JPEG_SEGMENTS = 1_000
"""Before the first scan. A large profile and long metadata need some hundreds."""
MAX_JPEG_PADDING = 1 << 16
"""Bytes between segments before the first scan: Pillow skips them one by one."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Width and height in pixels; `format` is JPEG, PNG or WEBP."""

    format: str
    width: int
    height: int


class UnknownFormat(Exception):
    """Neither JPEG nor PNG nor WebP."""


class DamagedHeader(Exception):
    """Begins like one of them and does not go on like it."""


def read_header(data: bytes) -> ImageHeader:
    """Reads format and size.

    Raises:
        UnknownFormat: neither JPEG nor PNG nor WebP.
        DamagedHeader: the size is missing or zero, or a JPEG has more scans, segments or
            padding than the limits of this module.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            header = ImageHeader("JPEG", *_jpeg_size(data))
            _check_jpeg_scans(data)
        elif data.startswith(b"\x89PNG\r\n\x1a\n"):
            if data[12:16] != b"IHDR":
                raise DamagedHeader("PNG does not begin with IHDR")
            header = ImageHeader("PNG", *struct.unpack_from(">II", data, 16))
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            header = ImageHeader("WEBP", *_webp_size(data))
        else:
            raise UnknownFormat
    except (struct.error, IndexError) as error:
        raise DamagedHeader("ends within its header") from error
    if not header.width or not header.height:
        raise DamagedHeader("has no pixels")
    return header


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """From the last start-of-frame segment before the data (ITU T.81, B.2.2), as Pillow has it."""
    size: tuple[int, int] | None = None
    end, padding = 2, 0
    for number, (marker, at) in enumerate(_jpeg_segments(data, MAX_JPEG_PADDING)):
        padding += at - 2 - end
        if padding > MAX_JPEG_PADDING or number > MAX_JPEG_SEGMENTS:
            raise DamagedHeader("JPEG has too many segments or bytes between them before its data")
        if marker in (_JPEG_END, _JPEG_SCAN):
            break
        length: int = struct.unpack_from(">H", data, at)[0]
        end = at + max(2, length)
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            size = width, height
    else:
        raise DamagedHeader("JPEG ends, or has too many bytes between segments, before its data")
    if size is None:
        raise DamagedHeader("JPEG has no frame header before its data")
    return size


def _check_jpeg_scans(data: bytes) -> None:
    """Counts scans one by one only where there may be too many: that is slow.

    The bytes of a scan's marker may also stand in metadata, and in what follows the image.
    """
    if data.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return
    scans = between = 0
    for marker, _ in _jpeg_segments(data, len(data)):
        if marker == _JPEG_END:
            return
        if marker == _JPEG_SCAN:
            scans, between = scans + 1, 0
        else:
            between += 1
        if scans > MAX_JPEG_SCANS or between > MAX_JPEG_SEGMENTS:
            raise DamagedHeader(f"JPEG has more than {MAX_JPEG_SCANS} scans")


def _jpeg_segments(data: bytes, reach: int) -> Iterator[tuple[int, int]]:
    """Markers with where their lengths stand, as libjpeg finds them, at most `reach` bytes on."""
    at = 2
    while found := _JPEG_MARKER.search(data, at, at + reach):
        at = found.end()
        marker = found[1][0]
        yield marker, at
        if marker != _JPEG_END:
            at += max(2, struct.unpack_from(">H", data, at)[0])


def _webp_size(data: bytes) -> tuple[int, int]:
    """From the first chunk (RFC 9649, section 2)."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        if len(data) < 30:
            raise DamagedHeader("WebP ends within its header")
        return width, height
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise DamagedHeader("WebP begins with no image")
