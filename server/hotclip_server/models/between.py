"""A weight on the line between two others."""

from __future__ import annotations

import torch
from torch import Tensor


def between(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) * base + alpha * tuned, of one shape and type, on one device.

    To the bit the base at 0, the tuned at 1, and what both are where they are equal: plain
    interpolation turns -0.0 into 0.0, and so a tower that nobody trained into another encoder.
    """
    if alpha in (0, 1):
        return tuned if alpha else base
    return torch.where(base == tuned, tuned, torch.lerp(base, tuned, alpha))
