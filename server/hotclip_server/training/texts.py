"""Texts of a set by number, as tokens: made when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotclip_server.training.clip import Clip

KEPT_BYTES = 8 << 20
"""Of tokens that are kept: those of a small set are made once."""


class TextStore:
    """What is past the byte budget is made again each time, so memory stays bounded.

    Args:
        texts: At least one; numbers are places in this list.
        budget_bytes: Of tokens that are kept.
    """

    def __init__(self, clip: Clip, texts: Sequence[str], budget_bytes: int = KEPT_BYTES) -> None:
        self._clip = clip
        self._texts = texts
        self._context = clip.tokenizer([texts[0]]).shape[1]
        kept = min(len(texts), budget_bytes // (4 * self._context))
        self._kept = np.zeros((kept, self._context), dtype=np.int32)
        self._known = np.zeros(kept, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._texts)

    def batch(self, numbers: NDArray[np.integer]) -> Tensor:
        """[n, context] int64 of the texts with these numbers."""
        wanted, places = np.unique(numbers, return_inverse=True)
        room = wanted < len(self._known)
        ready = room.copy()
        ready[room] = self._known[wanted[room]]
        tokens = np.empty((len(wanted), self._context), dtype=np.int64)
        tokens[ready] = self._kept[wanted[ready]]
        if not ready.all():
            texts = [self._texts[number] for number in wanted[~ready].tolist()]
            tokens[~ready] = self._clip.tokenizer(texts).numpy()
            new = room & ~ready
            self._kept[wanted[new]] = tokens[new]
            self._known[wanted[new]] = True
        return torch.from_numpy(tokens[places])
