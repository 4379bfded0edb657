"""Small pictures for a page: decoded, shrunk and encoded anew, whatever the original holds."""

from __future__ import annotations

import base64
import io

from PIL import Image

SIDE = 96
"""Longest side in pixels: twice that on the page, for sharp screens."""
QUALITY = 75


def thumbnail(data: bytes, side: int = SIDE) -> bytes:
    """A WebP of at most `side` pixels a side, on white, without metadata; about 3 KB.

    Raises:
        OSError, ValueError, SyntaxError: it can't be decoded.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        image.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded at a part of its size
        image.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=2.0)
        shown = image.convert("RGBA")
    page = Image.new("RGB", shown.size, "white")
    page.paste(shown, mask=shown)
    small = io.BytesIO()
    page.save(small, "WEBP", quality=QUALITY, method=4)
    return small.getvalue()


def data_uri(webp: bytes) -> str:
    """For the source of an image element."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
