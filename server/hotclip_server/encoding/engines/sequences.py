"""Where the tokens of several sequences lie when little place is spent on padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SIGNIFICANT_BITS = 4
"""Of a number of rows: between two powers of two there are 8 numbers that it may be."""


def rounded_rows(tokens: int) -> int:
    """The next number of rows that layers are run on, at most an eighth more.

    oneDNN generates code for each shape that it meets, which takes as long as a small batch, and
    keeps a limited number.
    """
    step = 1 << max(0, tokens.bit_length() - SIGNIFICANT_BITS)
    return -(-tokens // step) * step


class Sequences:
    """Tokens one sequence after the other, [rows, width]; rows behind the last token are idle.

    Attention needs them padded, [n, longest, width]; nothing else does.

    Args:
        lengths: Tokens of each sequence, at least one.
        rows: At least their sum; 0: their sum.

    Attributes:
        n: How many sequences.
        last: int64 [n], the row of the last token of each.
        first: int64 [n], the row of the first.
        owner: int64 [tokens], the sequence of each token.
        mask: bool [n, 1, 1, longest], False at padding; None if there is none.
        additive: The same for adding, fp32 [n, 1, longest].
    """

    def __init__(self, lengths: Sequence[int], device: torch.device, rows: int = 0) -> None:
        self.n = len(lengths)
        self.longest = max(lengths)
        ends = np.cumsum(lengths)
        tokens = int(ends[-1])
        self.last = torch.from_numpy(ends - 1).to(device)
        self.first = torch.from_numpy(ends - lengths).to(device)
        self.owner = torch.from_numpy(np.repeat(np.arange(self.n), lengths)).to(device)
        self.mask: Tensor | None = None
        self.additive: Tensor | None = None
        self._rows: Tensor | None = None
        self._places: Tensor | None = None
        if min(lengths) == self.longest and rows <= tokens:
            return  # they lie padded already
        at = np.arange(self.longest)
        inside = at < np.asarray(lengths)[:, None]  # [n, longest]
        # Padding repeats a row that exists: it must be finite, its value is masked.
        from_rows = np.minimum((ends - lengths)[:, None] + at, (ends - 1)[:, None])
        self._rows = torch.from_numpy(from_rows.reshape(-1)).to(device)
        places = np.zeros(max(tokens, rows), np.int64)
        places[:tokens] = np.flatnonzero(inside)
        self._places = torch.from_numpy(places).to(device)
        if min(lengths) < self.longest:
            self.mask = torch.from_numpy(inside[:, None, None]).to(device)
            self.additive = torch.zeros(self.n, 1, self.longest, device=device)
            self.additive.masked_fill_(~self.mask[:, 0], float("-inf"))

    def pad(self, x: Tensor) -> Tensor:
        """[rows, width] to [n, longest, width]."""
        padded = x if self._rows is None else x.index_select(0, self._rows)
        return padded.view(self.n, self.longest, -1)

    def pack(self, x: Tensor) -> Tensor:
        """[n, longest, width] to [rows, width]."""
        flat = x.reshape(self.n * self.longest, -1)
        return flat if self._places is None else flat.index_select(0, self._places)
