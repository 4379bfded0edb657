"""A tiny captioned data set that needs no download: coloured shapes on a coloured ground."""

import io
from collections.abc import Iterator

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
SHAPES = ("circle", "square", "triangle", "cross", "bar", "ring")
SIDE = 96
"""Height and width of a picture in pixels."""


def captioned_shapes(count: int) -> Iterator[tuple[str, bytes]]:
    """The first `count` (at most 336) different pairs of a caption and a PNG file."""
    kinds = (
        (colour, shape, ground)
        for turn in range(1, len(COLOURS))
        for shape in SHAPES
        for position, colour in enumerate(COLOURS)
        for ground in (COLOURS[(position + turn) % len(COLOURS)],)
    )
    for _, (colour, shape, ground) in zip(range(count), kinds, strict=False):
        yield f"a {colour} {shape} on {ground}", draw(colour, shape, ground)


def draw(colour: str, shape: str, ground: str) -> bytes:
    """PNG file of one shape, (SIDE, SIDE) pixels, RGB."""
    image = Image.new("RGB", (SIDE, SIDE), ground)
    canvas = ImageDraw.Draw(image)
    low, middle, high = SIDE // 5, SIDE // 2, SIDE - SIDE // 5
    match shape:
        case "circle":
            canvas.ellipse((low, low, high, high), fill=colour)
        case "square":
            canvas.rectangle((low, low, high, high), fill=colour)
        case "triangle":
            canvas.polygon([(middle, low), (high, high), (low, high)], fill=colour)
        case "cross":
            canvas.line((low, low, high, high), fill=colour, width=SIDE // 8)
            canvas.line((low, high, high, low), fill=colour, width=SIDE // 8)
        case "bar":
            canvas.rectangle((low, middle - SIDE // 12, high, middle + SIDE // 12), fill=colour)
        case _:
            canvas.ellipse((low, low, high, high), outline=colour, width=SIDE // 10)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
