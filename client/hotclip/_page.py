"""Writes a page to the disk: whole, or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path


def write_page(path: Path, name: str, html: str) -> Path:
    """Puts `html` at `path`, or into it as `<name>.html` if it is a folder.

    What was there is replaced, but never by half a page.
    """
    target = path / f"{name}.html" if path.is_dir() else path
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".hotclip-") as folder:
        part = Path(folder) / "page"
        part.write_text(html, encoding="utf-8")
        part.replace(target)
    return target
