"""A picture of searches: what each query found before and after, the right ones framed."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from hotclip import Example

CELL, GAP, SHOWN, TEXT_WIDTH = 56, 8, 5, 220
RIGHT, OTHER = "#059669", "#e5e7eb"


def draw_sheet(examples: Sequence[Example], images: Mapping[str, bytes]) -> str:
    """SVG, a row a query: its text, the first five found before, the first five found after.

    `images` are PNG files by the key by which examples name them.
    """
    step = CELL + GAP
    after = TEXT_WIDTH + SHOWN * step + 2 * GAP
    width, height = after + SHOWN * step, (len(examples) + 1) * step
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" font-family="sans-serif" font-size="15" fill="#111827">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *(_text(x, step / 2, t) for x, t in ((GAP, "query"), (TEXT_WIDTH, "before"))),
        _text(after, step / 2, "after"),
    ]
    for place, example in enumerate(examples, 1):
        top = place * step
        parts.append(_text(GAP, top + CELL / 2, example.query))
        for left, found in ((TEXT_WIDTH, example.before), (after, example.after)):
            parts += _cells(left, top, found[:SHOWN], example.relevant, images)
    return "\n".join([*parts, "</svg>\n"])


def _text(left: float, middle: float, text: str) -> str:
    return f'<text x="{left}" y="{middle + 5}">{escape(text)}</text>'


def _cells(
    left: int,
    top: int,
    found: Sequence[str],
    relevant: Sequence[str],
    images: Mapping[str, bytes],
) -> Iterator[str]:
    for rank, key in enumerate(found):
        place = f'x="{left + rank * (CELL + GAP)}" y="{top}" width="{CELL}" height="{CELL}"'
        picture = base64.b64encode(images[key]).decode("ascii")
        yield f'<image {place} href="data:image/png;base64,{picture}"/>'
        colour, thick = (RIGHT, 4) if key in relevant else (OTHER, 1)
        yield f'<rect {place} fill="none" stroke="{colour}" stroke-width="{thick}"/>'
