"""How far vectors move, and whether the same neighbours are found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of quantiles."""
MOST_QUERIES = 1000
"""Points whose neighbours are compared: more change no digit that is shown."""
_ROWS = 256
_DECIMALS = 6
"""Equal things differ in the last bits of a product: no difference, but a tie."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Shift:
    """Cosines of old and new vectors of the same items; `quantiles` are at SHARES."""

    items: int
    mean: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Overlap:
    """Which share of the k nearest stay among the k nearest."""

    queries: int
    k: int
    """As asked for, or as many as there are."""
    mean: float
    p10: float
    """A tenth of the queries have less."""
    same_first: float
    """Share of the queries whose nearest stays the nearest."""


def cosines(old: Vectors, new: Vectors) -> NDArray[np.float64]:
    """Of row i of one with row i of the other; float64 (n,), in [-1, 1].

    Vectors of two versions are not comparable as such. Their cosine says how much a fine-tune
    moved a vector, because the new version began as the old one; of versions that are not
    related it is near 0 whatever they are worth.

    Args:
        old: (n, dim), unit rows.
        new: Likewise.
    """
    products = np.einsum("ij,ij->i", old.astype(np.float64), new.astype(np.float64))
    clipped: NDArray[np.float64] = np.clip(products, -1.0, 1.0)
    return clipped


def shift_of(values: NDArray[np.float64]) -> Shift | None:
    """Sums cosines up; None if there are none."""
    if not len(values):
        return None
    quantiles = np.quantile(values, SHARES)
    return Shift(len(values), float(values.mean()), tuple(map(float, quantiles)))


def overlap_within(old: Vectors, new: Vectors, k: int, *, seed: int = 0) -> Overlap | None:
    """Neighbours of points among themselves, a point not being its own; None for one point.

    Args:
        old: (n, dim), unit rows.
        new: (n, another dim), unit rows of the same points.
        k: Neighbours.
        seed: Of the choice of points, if there are more than MOST_QUERIES.
    """
    count = len(old)
    if count < 2:
        return None
    chosen = np.arange(count)
    if count > MOST_QUERIES:
        chosen = np.sort(np.random.default_rng(seed).choice(count, MOST_QUERIES, replace=False))
    k = min(k, count - 1)
    return _compared(
        nearest(old[chosen], old, k, leave_out=chosen), nearest(new[chosen], new, k, chosen)
    )


def overlap_of_queries(
    old: tuple[Vectors, Vectors], new: tuple[Vectors, Vectors], k: int
) -> Overlap | None:
    """What queries find among points, each a pair of (queries, dim) and (points, dim) of one
    version, unit rows; None without queries or points."""
    if not len(old[0]) or not len(old[1]):
        return None
    k = min(k, len(old[1]))
    return _compared(nearest(*old, k), nearest(*new, k))


def nearest(
    queries: Vectors, points: Vectors, k: int, leave_out: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Rows of the k points of the largest cosine, best first; int64 (queries, k).

    Equal ones are in the order of rows.

    Args:
        queries: (q, dim), unit rows.
        points: (n, dim), unit rows.
        k: At most n, or n - 1 with `leave_out`.
        leave_out: (q,), a row that a query does not find; None: none.
    """
    found = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), _ROWS):
        scores = np.round(queries[start : start + _ROWS] @ points.T, _DECIMALS)
        if leave_out is not None:
            part = leave_out[start : start + _ROWS]
            scores[np.arange(len(part)), part] = -np.inf
        found[start : start + _ROWS] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return found


def _compared(old: NDArray[np.int64], new: NDArray[np.int64]) -> Overlap:
    count, k = old.shape
    common = [len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(old, new, strict=True)]
    shares = np.array(common) / k
    return Overlap(
        queries=count,
        k=k,
        mean=float(shares.mean()),
        p10=float(np.quantile(shares, 0.1)),
        same_first=float((old[:, 0] == new[:, 0]).mean()),
    )
