"""Running a text tower on no more tokens than it needs, where that is exact.

A causal tower that pools at one token never looks past it. A masked tower gives padding no
weight. Any other (SigLIP looks at its padding) gets the full context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn


class Trim(Enum):
    """How a text may be shortened."""

    NONE = "none"
    CAUSAL = "causal"
    """After the token that is pooled."""
    MASKED = "masked"
    """After the last token that is not padding."""


@dataclass(frozen=True, kw_only=True)
class Shortening:
    """Cuts padded ids after the last token that counts."""

    trim: Trim
    first_largest: bool
    """The token that a causal tower pools is the first of the largest id; else the first
    `eos_id`."""
    eos_id: int
    pad_id: int
    """What a masked tower does not look at."""

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part of (context_length,) ids that decides the embedding."""
        if self.trim is Trim.CAUSAL:
            pooled = ids.argmax() if self.first_largest else (ids == self.eos_id).argmax()
            return ids[: int(pooled) + 1]
        if self.trim is Trim.MASKED:
            kept = np.flatnonzero(ids != self.pad_id)
            return ids[: int(kept[-1]) + 1] if len(kept) else ids[:1]
        return ids


class TextTower:
    """Trims, pads and runs the text tower of one model."""

    def __init__(self, model: nn.Module, context_length: int) -> None:
        self._model: Any = model  # open_clip is not typed
        self._context_length = context_length
        self._tower = _tower_of(model)
        self.trim = self._find_trim()
        self._pad_id = 0
        if self.trim is Trim.MASKED:
            self._pad_id = int(self._tower.config.pad_token_id)
        if self.trim is Trim.CAUSAL:
            self._pool, self._eos = _pooling(self._tower)
            self._pad_id = 0 if self._pool == "argmax" or self._eos != 0 else 1

    @property
    def shortening(self) -> Shortening:
        """How `shorten` does it."""
        causal = self.trim is Trim.CAUSAL
        return Shortening(
            trim=self.trim,
            first_largest=causal and self._pool == "argmax",
            eos_id=self._eos if causal else 0,
            pad_id=self._pad_id,
        )

    @property
    def masked_id(self) -> int | None:
        """The token that a masked tower does not look at; None: the tower looks at every one."""
        return self._pad_id if self.trim is Trim.MASKED else None

    def release(self) -> None:
        """Frees the weights: `shorten` and `pad` still work, `run` does not."""
        self._model = self._tower = None

    def shorten(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part of (context_length,) padded ids that decides the embedding."""
        return self.shortening(ids)

    def pad(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Shortened ids to one array (len(batch), longest)."""
        padded = np.full((len(batch), max(map(len, batch))), self._pad_id, np.int64)
        for row, ids in zip(padded, batch, strict=True):
            row[: len(ids)] = ids
        return padded

    def pooled(self, ids: Tensor) -> Tensor:
        """[n, length] ids of a causal tower to int64 [n], the place of the token that is pooled."""
        if self._pool == "argmax":
            return ids.argmax(-1)
        return (ids == self._eos).int().argmax(-1)

    def run(self, ids: Tensor) -> Tensor:
        """[n, length] ids to [n, dim] features, not normalised for every architecture."""
        if self.trim is Trim.CAUSAL and ids.shape[1] < self._context_length:
            return self._run_causal(ids)
        features: Tensor = self._model.encode_text(ids)
        return features

    def _run_causal(self, ids: Tensor) -> Tensor:
        """open_clip's `encode_text` with positions and mask cut to the batch's length."""
        tower, length = self._tower, ids.shape[1]
        dtype = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(ids).to(dtype)  # [n, length, width]
        x = x + tower.positional_embedding[:length].to(dtype)
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = text_global_pool(tower.ln_final(x), ids, self._pool, eos_token_id=self._eos)
        projection = tower.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        features: Tensor = x
        return features

    def _find_trim(self) -> Trim:
        tower = self._tower
        if type(tower) in (CLIP, TextTransformer):
            same_length = tower.positional_embedding.shape[0] == self._context_length
            plain = getattr(tower, "cls_emb", None) is None
            plain = plain and not getattr(tower, "output_tokens", False)
            pools = _pooling(tower)[0] in ("argmax", "eos")
            causal = tower.attn_mask is not None
            return Trim.CAUSAL if causal and pools and plain and same_length else Trim.NONE
        if type(tower) is HFTextEncoder and tower.config.pad_token_id is not None:
            poolers = (MeanPooler, ClsPooler, ClsLastHiddenStatePooler)
            return Trim.MASKED if isinstance(tower.pooler, poolers) else Trim.NONE
        return Trim.NONE


def _tower_of(model: nn.Module) -> Any:
    """The module that holds the text tower: the model itself in open_clip's oldest layout."""
    return model if isinstance(model, CLIP) else model.text


def _pooling(tower: CLIP | TextTransformer) -> tuple[str, int]:
    if isinstance(tower, CLIP):
        return tower.text_pool_type, tower.text_eos_id
    return tower.pool_type, tower.eos_id
