"""Drawn pictures of which a small model can learn the names."""

from __future__ import annotations

import hashlib
import io

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "orange", "purple", "black", "teal", "pink")
SHAPES = ("square", "circle", "triangle", "cross")


def draw(colour: str, shape: str, *, size: int = 48, file_format: str = "PNG") -> bytes:
    """A file with one shape on white."""
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    low, high, middle = size // 5, size - size // 5, size // 2
    if shape == "square":
        pen.rectangle((low, low, high, high), fill=colour)
    elif shape == "circle":
        pen.ellipse((low, low, high, high), fill=colour)
    elif shape == "triangle":
        pen.polygon([(middle, low), (low, high), (high, high)], fill=colour)
    else:
        pen.line((low, low, high, high), fill=colour, width=size // 8)
        pen.line((low, high, high, low), fill=colour, width=size // 8)
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def drawn_pairs() -> list[tuple[bytes, str]]:
    """32 pictures, each with what it shows."""
    return [(draw(c, s), f"a {c} {s}") for c in COLOURS for s in SHAPES]


def key_of(data: bytes) -> str:
    """How a dataset names an image."""
    return hashlib.sha256(data).hexdigest()
