"""Where the tokens of several sequences lie when no place is spent on padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Sequences:
    """Tokens one sequence after the other, [tokens, width].

    Attention needs them padded, [n, longest, width]; nothing else does.

    Attributes:
        n: How many sequences.
        last: int64 [n], the row of the last token of each.
        first: int64 [n], the row of the first.
        owner: int64 [tokens], the sequence of each row.
        mask: bool [n, 1, 1, longest], False at padding; None if there is none.
        additive: The same for adding, fp32 [n, 1, longest].
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.n = len(lengths)
        self.longest = max(lengths)
        ends = np.cumsum(lengths)
        self.last = torch.from_numpy(ends - 1).to(device)
        self.first = torch.from_numpy(ends - lengths).to(device)
        self.owner = torch.from_numpy(np.repeat(np.arange(self.n), lengths)).to(device)
        self.mask: Tensor | None = None
        self.additive: Tensor | None = None
        if min(lengths) < self.longest:
            at = np.arange(self.longest)
            inside = at < np.asarray(lengths)[:, None]  # [n, longest]
            # Padding repeats a row that exists: it must be finite, its value is masked.
            rows = np.minimum((ends - lengths)[:, None] + at, (ends - 1)[:, None])
            self._rows = torch.from_numpy(rows.reshape(-1)).to(device)
            self._places = torch.from_numpy(np.flatnonzero(inside)).to(device)
            self.mask = torch.from_numpy(inside[:, None, None]).to(device)
            self.additive = torch.zeros(self.n, 1, self.longest, device=device)
            self.additive.masked_fill_(~self.mask[:, 0], float("-inf"))

    def pad(self, x: Tensor) -> Tensor:
        """[tokens, width] to [n, longest, width]."""
        rows = x if self.mask is None else x.index_select(0, self._rows)
        return rows.view(self.n, self.longest, -1)

    def pack(self, x: Tensor) -> Tensor:
        """[n, longest, width] to [tokens, width]."""
        flat = x.reshape(self.n * self.longest, -1)
        return flat if self.mask is None else flat.index_select(0, self._places)
