"""What a model's files from elsewhere may ask for, before anything is built of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hotclip_server.encoding.architecture import CONFIG_FILE, HF_CONFIG_FILE
from hotclip_server.errors import FailedPrecondition
from hotclip_server.models.manifest import MANIFEST_FILE

LARGEST = 2_000_000
"""Of any number in a config: vocabularies have up to 1,000,000."""
LARGEST_WIDTH = 20_000
"""Of what is not a vocabulary: widths, sizes in pixels, tokens."""
MOST_LAYERS = 256
_VOCABULARIES = frozenset({"vocab_size", "eos_token_id", "bos_token_id", "pad_token_id", "eos_id"})
_LONGEST_NAME = 128


def check_sizes(folder: Path) -> None:
    """Refuses configs of towers that no file of weights could fill.

    Raises:
        FailedPrecondition: reason VERSION_UNFIT.
    """
    for name in (CONFIG_FILE, HF_CONFIG_FILE):
        if (folder / name).is_file():
            check_sizes_of(folder / name)


def check_sizes_of(config: Path) -> None:
    """As `check_sizes`, of one file."""
    try:
        _check(json.loads(config.read_bytes()), config.name, "")
    except (ValueError, RecursionError) as error:
        raise _unfit(f"{config.name} is not JSON: {error}") from error


def told_architecture(folder: Path) -> str:
    """The name for people that an exporting server wrote down; empty if none did."""
    try:
        told = json.loads((folder / MANIFEST_FILE).read_bytes())["spec"]["architecture"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    known = isinstance(told, str) and told.isprintable() and len(told) <= _LONGEST_NAME
    return told if known else ""


def _check(value: Any, file: str, key: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _check(inner, file, name)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, file, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = LARGEST_WIDTH
        if key in _VOCABULARIES or isinstance(value, float):
            most = LARGEST
        elif "layers" in key or "depth" in key:
            most = MOST_LAYERS
        if not abs(value) <= most:
            raise _unfit(f"{file}: {key} is {value}, at most {most} is taken")


def _unfit(problem: str) -> FailedPrecondition:
    return FailedPrecondition(problem, reason="VERSION_UNFIT")
