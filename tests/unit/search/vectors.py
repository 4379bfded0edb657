"""Vectors and points for the tests of stores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hotclip_server.search.protocol import PointMeta


def clustered(n: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors around 50 centres, as embeddings of real things lie."""
    centres = np.random.default_rng(7).standard_normal((50, dim))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 50, n)] + 0.7 * rng.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def points(n: int, revision: int = 1) -> list[PointMeta]:
    return [PointMeta(f"id {i}", revision, {"n": i, "even": i % 2 == 0}) for i in range(n)]
