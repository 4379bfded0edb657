"""A tokenizer for programs without open_clip: one `tokenizer.json` and what it does not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, models, pre_tokenizers, processors

from hotclip_server.encoding.architecture import CONFIG_FILE, OpenClipConfig
from hotclip_server.encoding.byte_pairs import BytePairTokenizer
from hotclip_server.encoding.tokenizer import (
    PROBES,
    SETTINGS_FILE,
    FastTokenizer,
    TextTokenizer,
    TokenizerSettings,
)

_PIECES = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""As in `open_clip.SimpleTokenizer`."""


def write_local_tokenizer(
    tokenizer: TextTokenizer, folder: Path, out: Path
) -> dict[str, Any] | None:
    """Says how texts of a stored version become ids; None if only open_clip can do it.

    Args:
        folder: Of the version.
        out: Gets `tokenizer.json` where `folder` has none, if it gives the same ids for `PROBES`.

    Returns:
        What `tokenizer.json` does not say: how a text is cleaned ("lower", "whitespace" or
        "canonicalize"), padded and cut; lengths in tokens.
    """
    config = OpenClipConfig.from_json((folder / CONFIG_FILE).read_bytes())
    options = config.text.get("tokenizer_kwargs") or {}
    if isinstance(tokenizer, FastTokenizer):
        settings = TokenizerSettings(**json.loads((folder / SETTINGS_FILE).read_bytes()))
        return {
            "clean": options.get("clean", "whitespace"),
            "context_length": tokenizer.context_length,
            "pad_id": settings.pad_id,
            "padding_side": settings.padding_side,
            "truncation_side": settings.truncation_side,
            "strip_id": settings.sep_id if options.get("strip_sep_token") else None,
        }
    if not isinstance(tokenizer, BytePairTokenizer):
        return None
    backend = byte_pair_backend(tokenizer.source)
    if not _equal(backend, tokenizer):
        return None
    backend.save(str(out / "tokenizer.json"))
    return {
        "clean": options.get("clean", "lower"),
        "context_length": tokenizer.context_length,
        "pad_id": 0,
        "padding_side": "right",
        "truncation_side": "right",
        "strip_id": None,
    }


def byte_pair_backend(tokenizer: SimpleTokenizer) -> tokenizers.Tokenizer:
    """open_clip's own tokenizer for the `tokenizers` library, of texts that are cleaned."""
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(tokenizer.encoder),
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    marks = [tokenizer.decoder[mark] for mark in tokenizer.all_special_ids]
    backend.add_special_tokens(marks)
    start, end = zip(marks, tokenizer.all_special_ids, strict=True)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start[0]} $A {end[0]}", special_tokens=[start, end]
    )
    return backend


def _equal(backend: tokenizers.Tokenizer, tokenizer: BytePairTokenizer) -> bool:
    clean = tokenizer.source.clean_fn
    room = tokenizer.context_length - 2
    for text in PROBES:
        encoding = backend.encode(clean(text), add_special_tokens=False)
        encoding.truncate(room)
        ids = backend.post_process(encoding).ids
        expected = tokenizer.ids(text)
        if not np.array_equal(ids, expected[: len(ids)]) or expected[len(ids) :].any():
            return False
    return True
