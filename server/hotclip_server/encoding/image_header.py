"""Format and size of an image, read from its first bytes; nothing is decoded or allocated."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_JPEG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}
"""Markers that no length follows."""


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
        DamagedHeader: the size is missing or zero.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            header = ImageHeader("JPEG", *_jpeg_size(data))
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
    """From the first start-of-frame segment (ITU T.81, B.2.2)."""
    at = 2
    while True:
        if data[at] != 0xFF:
            at += 1  # Pillow, too, skips bytes between segments.
            continue
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _JPEG_BARE or marker == 0x00:
            at += 2
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        elif marker in (0xD9, 0xDA):
            raise DamagedHeader("JPEG has no frame header before its data")
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]


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
