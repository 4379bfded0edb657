"""Running figures in bounded memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LAST = 4096
"""Values of which percentiles are told: the last ones."""


@dataclass
class Figures:
    """Of a quantity: how often, its mean over all, its percentiles over the last LAST."""

    count: int = 0
    total: float = 0.0
    last: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))

    def add(self, value: float) -> None:
        """One more."""
        self.count += 1
        self.total += value
        self.last.append(value)

    @property
    def mean(self) -> float:
        """0 if there is none."""
        return self.total / self.count if self.count else 0.0

    @property
    def values(self) -> NDArray[np.float64]:
        """The last ones."""
        return np.array(self.last)
