"""A picture of searches: what each query found before and after, the right ones framed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from hotclip import Example

CELL, GAP, SHOWN, TEXT_WIDTH = 56, 8, 5, 220
RIGHT, OTHER, INK = "#059669", "#e5e7eb", "#111827"


def draw_sheet(examples: Sequence[Example], images: Mapping[str, bytes]) -> Image.Image:
    """A row a query: its text, the first five found before, then the first five found after.

    `images` are encoded pictures by the key by which examples name them.
    """
    row = CELL + GAP
    after = TEXT_WIDTH + SHOWN * row + 2 * GAP
    sheet = Image.new("RGB", (after + SHOWN * row, (len(examples) + 1) * row), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for left, title in ((GAP, "query"), (TEXT_WIDTH, "before"), (after, "after")):
        pen.text((left, row // 2), title, fill=INK, font=font, anchor="lm")
    for place, example in enumerate(examples, 1):
        top = place * row
        pen.text((GAP, top + CELL // 2), example.query[:28], fill=INK, font=font, anchor="lm")
        for left, found in ((TEXT_WIDTH, example.before), (after, example.after)):
            for rank, key in enumerate(found[:SHOWN]):
                corner = (left + rank * row, top)
                with Image.open(io.BytesIO(images[key])) as picture:
                    sheet.paste(picture.convert("RGB").resize((CELL, CELL)), corner)
                frame = (*corner, corner[0] + CELL - 1, corner[1] + CELL - 1)
                right = key in example.relevant
                pen.rectangle(frame, outline=RIGHT if right else OTHER, width=3 if right else 1)
    return sheet
