"""What is meant by a word on the command line: a picture, a file of data, or a text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hotclip.errors import InvalidArgument

DATA = {".csv", ".tsv", ".jsonl", ".ndjson", ".tar", ".tgz", ".gz", ".bz2", ".xz"}
PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


def item(word: str) -> str | Path:
    """A picture if it is the name of one, else a text; "text:…" and "image:…" leave no doubt.

    Raises:
        InvalidArgument: The picture is not there.
    """
    if word.startswith("text:"):
        return word.removeprefix("text:")
    path = Path(word.removeprefix("image:"))
    if word.startswith("image:") or path.suffix.lower() in PICTURES:
        if not path.is_file():
            problem = f"no file {str(path)!r}; if it is meant as a text: text:{word}"
            raise InvalidArgument.field("input", problem)
        return path
    return word


def items(words: Sequence[str]) -> list[str | Path]:
    """As `item`; "-" stands for the lines of stdin, each a text."""
    found: list[str | Path] = []
    for word in words:
        if word == "-":
            found += [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
        else:
            found.append(item(word))
    return found


def data(word: str) -> str | Path:
    """A file or folder if there is one of this name, else the name of a dataset.

    Raises:
        InvalidArgument: It can be nothing but a file, which is not there.
    """
    path = Path(word)
    if path.exists():
        return path
    if len(path.parts) > 1 or path.suffix.lower() in DATA:
        raise InvalidArgument.field("data", f"no file {word!r}")
    return word
