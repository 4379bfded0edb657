"""From features, as a tower gives them, to unit vectors. No torch here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-12
"""Norm below which a row is not stretched, as in torch.nn.functional.normalize."""


def unit_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row divided by its L2 norm; float32 (n, dim). A row of zeros stays one."""
    norms = np.sqrt(np.einsum("ij,ij->i", features, features))
    unit: NDArray[np.float32] = features / np.maximum(norms, EPSILON)[:, None]
    return unit
