"""What the command prints: tables and lines for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

_LONGEST_CELL = 60


def plain(value: Any) -> Any:
    """A value of the client as JSON has it: dataclasses become objects, times ISO 8601."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Exception | Path):
        return str(value)
    return [plain(inner) for inner in value]


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON value on stdout."""
    print(json.dumps(plain(value), indent=indent, ensure_ascii=False))


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns for people; long cells are cut, control characters do not reach the terminal."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for row in (titles, *cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def print_fields(rows: Iterable[tuple[str, object]]) -> None:
    """One name and its value a line; what is empty is left out."""
    shown = [(name, text) for name, value in rows if (text := _text(value))]
    width = max((len(name) for name, _ in shown), default=0)
    for name, text in shown:
        print(f"{name.ljust(width)}  {text}")


def note(text: str) -> None:
    """A line beside the result, on stderr."""
    print(text, file=sys.stderr, flush=True)


def clean(text: str) -> str:
    """Without control characters: what a server stores may come from anybody."""
    return "".join(c if c.isprintable() else " " for c in text)


def _cell(value: object) -> str:
    text = _text(value)
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list | tuple):
        return clean(", ".join(map(str, value)))
    return clean(str(value))
