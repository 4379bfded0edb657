"""Texts as a local model takes them, without open_clip."""

from __future__ import annotations

import html
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class LocalTokenizer:
    """Ids as open_clip makes them.

    Args:
        file: A tokenizer.json.
        settings: How texts are cleaned, cut and padded; see hotclip_local.json.
        shortening: How far a padded text matters.
    """

    def __init__(
        self, file: Path, settings: Mapping[str, Any], shortening: Mapping[str, Any]
    ) -> None:
        import ftfy  # noqa: F401 - whether it is there, before the first text
        import tokenizers

        self._backend = tokenizers.Tokenizer.from_file(str(file))
        self._backend.no_truncation()
        self._backend.no_padding()
        self._settings = settings
        self._shortening = shortening
        self._clean = CLEANERS[settings["clean"]]
        self._room = settings["context_length"] - self._backend.num_special_tokens_to_add(False)

    def __call__(self, texts: list[str]) -> NDArray[np.int64]:
        """int64 [n, tokens]: as many as the longest needs."""
        rows = np.stack([self._ids(text) for text in texts])
        return rows[:, : max(map(self._needed, rows))]

    def _ids(self, text: str) -> NDArray[np.int64]:
        told = self._settings
        encoding = self._backend.encode(self._clean(text), add_special_tokens=False)
        if len(encoding) > self._room:
            encoding.truncate(self._room, direction=told["truncation_side"])
        ids = self._backend.post_process(encoding).ids
        row = np.full(told["context_length"], told["pad_id"], np.int64)
        row[len(row) - len(ids) if told["padding_side"] == "left" else 0 :][: len(ids)] = ids
        if told["strip_id"] is not None:
            row[row == told["strip_id"]] = 0
        return row

    def _needed(self, ids: NDArray[np.int64]) -> int:
        """Tokens that decide the embedding."""
        told = self._shortening
        if told["trim"] == "causal":
            pooled = ids.argmax() if told["first_largest"] else (ids == told["eos_id"]).argmax()
            return int(pooled) + 1
        if told["trim"] == "masked":
            kept = np.flatnonzero(ids != told["pad_id"])
            return int(kept[-1]) + 1 if len(kept) else 1
        return len(ids)


def _basic(text: str) -> str:
    """As open_clip's `basic_clean`."""
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def _whitespace(text: str) -> str:
    return " ".join(_basic(text).split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _canonical(text: str) -> str:
    plain = _basic(text).replace("_", " ").translate(_PUNCTUATION)
    return " ".join(plain.lower().split())


CLEANERS: Mapping[str, Callable[[str], str]] = {
    "lower": _lower,
    "whitespace": _whitespace,
    "canonicalize": _canonical,
}
