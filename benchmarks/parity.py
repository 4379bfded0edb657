"""How near vectors are to their references. Knows nothing of torch."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

MIN_COSINE = 0.99999
MAX_DISTANCE_RATIO = 0.01
MAX_DISTANCE_RATIO_ROUNDED = 0.1
"""With products in bf16 or fp16."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far vectors are from their references."""

    cosine: float
    """Smallest cosine of a vector and its reference."""
    distance_ratio: float
    """Largest distance of the two, over the median distance between references."""
    nearest_is_own: bool
    """Whether each vector's nearest reference is its own, or one that is all but equal to that:
    nearer to it than two vectors of an exact engine may lie apart."""

    @property
    def passed(self) -> bool:
        close = self.cosine >= MIN_COSINE and self.distance_ratio <= MAX_DISTANCE_RATIO
        return close and self.nearest_is_own

    @property
    def passed_rounded(self) -> bool:
        """As `passed`, for an engine that multiplies in bf16 or fp16."""
        return self.distance_ratio <= MAX_DISTANCE_RATIO_ROUNDED and self.nearest_is_own

    def as_dict(self, *, exact: bool = True) -> dict[str, float | bool]:
        """Its figures and the verdict: by the rule of fp32 if `exact`, else by that of bf16."""
        return {**asdict(self), "passed": self.passed if exact else self.passed_rounded}


def compare(served: NDArray[np.float32], reference: NDArray[np.float32]) -> Parity:
    """Both float32 of shape (n, dim), n >= 2, rows of unit length and all different."""
    own = np.linalg.norm(served - reference, axis=1)  # (n,)
    between = np.linalg.norm(reference[:, None] - reference[None], axis=2)  # (n, n)
    crossed = np.linalg.norm(served[:, None] - reference[None], axis=2)  # (n, n)
    median = np.median(between[np.triu_indices(len(reference), k=1)])
    of_nearest = between[np.arange(len(served)), crossed.argmin(axis=1)]  # (n,)
    return Parity(
        cosine=float((served * reference).sum(axis=1).min()),
        distance_ratio=float(own.max() / median),
        nearest_is_own=bool((of_nearest <= 2 * MAX_DISTANCE_RATIO * median).all()),
    )
