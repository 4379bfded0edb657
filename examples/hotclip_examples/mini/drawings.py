"""Fourteen freely licensed ways to draw the concepts; OpenMoji is not among them.

Key of an image: "style/code" or "style/code/variant". All are 64 x 64 pixels on white.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hotclip_examples.emoji import Concept, load_concepts, render, render_svg
from hotclip_examples.emoji.render import drawing_key

SIZE = 64

ICONIFY = (
    "emojione",
    "emojione-monotone",
    "emojione-v1",
    "fxemoji",
    "noto-v1",
    "streamline-emojis",
)
FLUENT = ("flat", "modern", "high-contrast")
PNG = ("emoji-datasource-google", "emoji-datasource-google-blob")
FONT_WEIGHTS = {"noto-mono-light": "300Light", "noto-mono-bold": "700Bold"}

Draw = Callable[[], bytes]


def load_drawings(modules: Path, cache: Path) -> dict[str, bytes]:
    """PNG bytes of every drawing by key; `modules` is the node_modules folder.

    Each picture is drawn once and kept in the folder `cache`.
    """
    jobs = dict(_all_drawings(modules))

    def draw(key: str) -> bytes:
        path = cache / f"{key.replace('/', '_')}.png"
        if path.exists():
            return path.read_bytes()
        png = jobs[key]()
        path.write_bytes(png)
        return png

    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(jobs, pool.map(draw, jobs), strict=True))


def code_of_key(key: str) -> str:
    """The concept that an image key draws."""
    return key.split("/")[1]


def _all_drawings(modules: Path) -> Iterator[tuple[str, Draw]]:
    concepts = load_concepts()
    by_name = names_to_codes(modules)
    for concept in concepts:
        yield f"twemoji/{concept.code}", _twemoji(concept.code)
    for package in PNG:
        yield from _png_folder(package, modules / package / "img" / "google" / "64", concepts)
    for prefix in ICONIFY:
        yield from _iconify(prefix, modules / "@iconify-json" / prefix, by_name)
    for look in FLUENT:
        yield from _fluent(look, modules / "fluentui-emoji" / "icons" / look, by_name)
    for style, weight in FONT_WEIGHTS.items():
        file = next((modules / "@expo-google-fonts" / "noto-emoji" / weight).glob("*.ttf"))
        yield from _font(style, file, concepts)


def names_to_codes(modules: Path) -> dict[str, str]:
    """Code by slug (letters and digits only) of every name that only one concept has."""
    concepts = {drawing_key(concept.code): concept for concept in load_concepts()}
    data = modules / "emojibase-data" / "en"
    sure: dict[str, set[str]] = {}
    other: dict[str, set[str]] = {}
    for row in json.loads((data / "data.json").read_text("utf-8")):
        concept = concepts.get(drawing_key(row["hexcode"]))
        if concept is None:
            continue
        label = row["label"]
        for name in (label, concept.name, label.replace("flag:", "flag for")):
            sure.setdefault(slug(name), set()).add(concept.code)
        if len(row["hexcode"].split("-")) == 1:
            name = unicodedata.name(chr(int(row["hexcode"], 16)), "")
            other.setdefault(slug(name), set()).add(concept.code)
    for file in sorted((data / "shortcodes").glob("*.json")):
        for hexcode, codes in json.loads(file.read_text("utf-8")).items():
            concept = concepts.get(drawing_key(hexcode))
            for name in codes if isinstance(codes, list) else [codes]:
                if concept is not None:
                    other.setdefault(slug(name), set()).add(concept.code)
    unique = {name: min(codes) for name, codes in other.items() if len(codes) == 1}
    return unique | {name: min(codes) for name, codes in sure.items() if len(codes) == 1}


def slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.lower())
    return "".join(c for c in plain if c.isascii() and c.isalnum())


def _twemoji(code: str) -> Draw:
    return lambda: render(code, "twemoji", SIZE)


def _png_folder(
    style: str, folder: Path, concepts: tuple[Concept, ...]
) -> Iterator[tuple[str, Draw]]:
    files = {drawing_key(file.stem): file for file in folder.glob("*.png")}
    for concept in concepts:
        file = files.get(drawing_key(concept.code))
        if file is not None:
            yield f"{style}/{concept.code}", _flattened(file)


def _flattened(file: Path) -> Draw:
    def draw() -> bytes:
        with Image.open(file) as image:
            return _on_white(image.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    return draw


def _iconify(prefix: str, folder: Path, by_name: Mapping[str, str]) -> Iterator[tuple[str, Draw]]:
    icons: dict[str, Any] = json.loads((folder / "icons.json").read_text("utf-8"))
    for name, icon in icons["icons"].items():
        code = by_name.get(slug(name))
        variant = re.fullmatch(r"(.+)-(\d)", name)
        if code is None and variant is not None:
            code = by_name.get(slug(variant[1]))
        if code is None:
            continue
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" color="#222" '
            f'xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
        yield f"{prefix}/{code}/{name}", _svg(svg)


def _fluent(look: str, folder: Path, by_name: Mapping[str, str]) -> Iterator[tuple[str, Draw]]:
    for file in sorted(folder.glob("*.svg")):
        code = by_name.get(slug(file.stem.removesuffix("-default")))
        if code is not None:
            yield f"fluent-{look}/{code}", _svg_file(file)


def _svg(svg: str) -> Draw:
    return lambda: _square(render_svg(svg, SIZE))


def _svg_file(file: Path) -> Draw:
    return lambda: _square(render_svg(file.read_text("utf-8"), SIZE))


def _font(style: str, file: Path, concepts: tuple[Concept, ...]) -> Iterator[tuple[str, Draw]]:
    """Glyphs of single code points; sequences would need text shaping."""
    font = ImageFont.truetype(str(file), SIZE - 12)
    missing = bytes(font.getmask("\U000e0fff"))
    for concept in concepts:
        character = concept.emoji.replace("\ufe0f", "")
        if len(character) == 1 and bytes(font.getmask(character)) != missing:
            yield f"{style}/{concept.code}", _glyph(font, character)


def _glyph(font: ImageFont.FreeTypeFont, character: str) -> Draw:
    def draw() -> bytes:
        image = Image.new("RGBA", (SIZE, SIZE), "white")
        middle = (SIZE / 2, SIZE / 2)
        ImageDraw.Draw(image).text(middle, character, fill="#222222", font=font, anchor="mm")
        return _on_white(image)

    return draw


def _square(png: bytes) -> bytes:
    """Pad to a square where the drawing is not one."""
    with Image.open(io.BytesIO(png)) as image:
        if image.size == (SIZE, SIZE):
            return png
        image.thumbnail((SIZE, SIZE))
        square = Image.new("RGBA", (SIZE, SIZE), "white")
        square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
        return _on_white(square)


def _on_white(image: Image.Image) -> bytes:
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    buffer = io.BytesIO()
    white.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
