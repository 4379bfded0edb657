"""A linear map between the spaces of two versions, fitted on items that both have encoded.

With rows x of the old version and y of the new one, W maps old vectors to new ones: y ≈ xW.

    procrustes   min ‖XW − Y‖² over orthogonal W, that is U Vᵀ of the singular value
                 decomposition U S Vᵀ of XᵀY (Schönemann 1966, "A generalized solution of the
                 orthogonal Procrustes problem", Psychometrika 31). With a penalty p the
                 decomposed matrix is XᵀY + pA, which also holds W near A.
    ridge        min ‖XW − Y‖² + p‖W − A‖², that is (XᵀX + pI)⁻¹ (XᵀY + pA) (Hoerl and Kennard
                 1970, "Ridge regression", Technometrics 12; shrunk to A instead of 0).

A is the identity where both have the same dimension, because the new version was trained from
the old one as a rule, else 0. Which of both, and which penalty, is chosen by the error on items
that were not fitted; how well the choice serves is measured on items that took no part in
either.

Serving maps the query, not what is stored: the product of a new query q with a mapped point xW
is the product of qWᵀ with x, at one small product a query; the stored vectors and their index
stay as they are, and nothing has to be undone. An orthogonal W keeps lengths, so this is the
order of cosines. Any other W does not: then the nearest by product are candidates, of which the
vectors are looked up and the cosines with xW computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotclip_server.drift.shift import (
    MOST_QUERIES,
    Vectors,
    nearest,
    overlap_of_queries,
    overlap_within,
)

LEAST_ITEMS = 64
"""With fewer, nothing is left to measure with."""
FITTED, CHOSEN_WITH = 0.5, 0.1
"""Shares of the items that maps are fitted on, and that choose among them; the rest measures."""
PROCRUSTES, RIDGE = "procrustes", "ridge"
CANDIDATES = 4
"""Times the hits that are asked for, where products do not order as cosines do."""
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of an item."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class LinearMap:
    """y ≈ x @ matrix."""

    matrix: NDArray[np.float32]
    """(old dim, new dim)."""
    method: str
    """PROCRUSTES or RIDGE."""
    penalty: float
    """Of an item; 0: none."""

    @property
    def keeps_lengths(self) -> bool:
        """Whether products of mapped queries order as cosines with mapped points do."""
        return self.method == PROCRUSTES and self.matrix.shape[0] <= self.matrix.shape[1]

    def queries(self, vectors: Vectors) -> Vectors:
        """New vectors, made comparable with stored old ones.

        Args:
            vectors: float32 (n, new dim), unit rows.

        Returns:
            float32 (n, old dim), not of unit length.
        """
        return vectors @ self.matrix.T

    def points(self, vectors: Vectors) -> Vectors:
        """Old vectors in the new space: float32 (n, new dim), unit rows, of (n, old dim)."""
        mapped = vectors @ self.matrix
        norms = np.linalg.norm(mapped, axis=1, keepdims=True)
        unit: Vectors = mapped / np.maximum(norms, 1e-12)
        return unit


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Measured on items that were neither fitted nor chosen with.

    Recall is the share of the k nearest by the new version itself that are among the k nearest
    by the map. Among more points than were measured it is lower, because neighbours are closer.
    """

    items: int
    """That were searched among."""
    k: int
    cosine_mean: float
    """Of mapped and new vectors of the same items."""
    recall: float
    """Items searching for items."""
    recall_of_bound: float
    """Likewise of the old version by itself: what a search finds without the map."""
    queries: int = 0
    """Texts that searched."""
    query_recall: float | None = None
    """Texts searching for items; None without texts."""
    query_recall_of_bound: float | None = None


@dataclass(frozen=True)
class Bridge:
    """A map and how well it serves."""

    map: LinearMap
    quality: Quality
    fitted_items: int


def fit_bridge(
    old: Vectors,
    new: Vectors,
    *,
    queries: tuple[Vectors, Vectors],
    k: int,
    seed: int = 0,
) -> Bridge:
    """Fits every map, takes the best, measures it.

    Args:
        old: (n, old dim), unit rows, n at least LEAST_ITEMS.
        new: (n, new dim), unit rows of the same items.
        queries: Texts by both versions, (m, dim) each; m may be 0.
        k: Length of the lists.
        seed: Of the split.

    Raises:
        ValueError: too few items.
    """
    if len(old) < LEAST_ITEMS:
        raise ValueError(f"{len(old)} items, at least {LEAST_ITEMS} are needed")
    order = np.random.default_rng(seed).permutation(len(old))
    fitted = order[: int(FITTED * len(old))]
    choosing = order[len(fitted) : len(fitted) + int(CHOSEN_WITH * len(old))]
    rest = order[len(fitted) + len(choosing) :]
    candidates = list(_maps(old[fitted], new[fitted]))
    errors = [error_of(one, old[choosing], new[choosing]) for one in candidates]
    best = candidates[int(np.argmin(errors))]
    both = np.concatenate([fitted, choosing])
    final = next(
        one
        for one in _maps(old[both], new[both])
        if (one.method, one.penalty) == (best.method, best.penalty)
    )
    return Bridge(final, measure(final, old[rest], new[rest], queries, k), len(both))


def error_of(linear: LinearMap, old: Vectors, new: Vectors) -> float:
    """1 − the mean cosine of mapped and new vectors."""
    return 1.0 - float(np.einsum("ij,ij->i", linear.points(old), new).mean())


def measure(
    linear: LinearMap, old: Vectors, new: Vectors, queries: tuple[Vectors, Vectors], k: int
) -> Quality:
    """How well a map serves these items, as a search would use it."""
    k = min(k, len(old) - 1)
    asked = np.arange(min(len(old), MOST_QUERIES))
    exact = nearest(new[asked], new, k, leave_out=asked)
    mapped = found_over(linear, new[asked], old, k, leave_out=asked)
    within = overlap_within(old, new, k)
    texts = overlap_of_queries((queries[0], old), (queries[1], new), k)
    query_recall = None
    if len(queries[1]):
        query_recall = _recall(found_over(linear, queries[1], old, k), nearest(queries[1], new, k))
    return Quality(
        items=len(old),
        k=k,
        cosine_mean=1.0 - error_of(linear, old, new),
        recall=_recall(mapped, exact),
        recall_of_bound=within.mean if within else 0.0,
        queries=len(queries[1]),
        query_recall=query_recall,
        query_recall_of_bound=texts.mean if texts else None,
    )


def found_over(
    linear: LinearMap,
    queries: Vectors,
    old: Vectors,
    k: int,
    leave_out: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Rows of the k old vectors that new queries find over a map, as a search does it.

    Args:
        queries: (q, new dim), unit rows.
        old: (n, old dim), unit rows.
        leave_out: See `nearest`.
    """
    if linear.keeps_lengths:
        return nearest(linear.queries(queries), old, k, leave_out)
    most = len(old) - (leave_out is not None)
    candidates = nearest(linear.queries(queries), old, min(CANDIDATES * k, most), leave_out)
    mapped = linear.points(old)
    scores = np.einsum("qd,qcd->qc", queries, mapped[candidates])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(candidates, order, axis=1)


def _recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    common = [len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)]
    return float(np.mean(common) / exact.shape[1])


def _maps(old: Vectors, new: Vectors) -> Iterator[LinearMap]:
    """Every candidate, fitted on these items."""
    x, y = old.astype(np.float64), new.astype(np.float64)
    square, product = x.T @ x, x.T @ y
    same = square.shape[0] == product.shape[1]
    anchor = np.eye(square.shape[0]) if same else np.zeros_like(product)
    yield LinearMap(_orthogonal(product), PROCRUSTES, 0.0)
    values, vectors = np.linalg.eigh(square)
    for penalty in _PENALTIES:
        weight = penalty * len(x)
        if same:
            yield LinearMap(_orthogonal(product + weight * anchor), PROCRUSTES, penalty)
        inverse = vectors / (values + weight) @ vectors.T
        solved = inverse @ (product + weight * anchor)
        yield LinearMap(solved.astype(np.float32), RIDGE, penalty)


def _orthogonal(product: Matrix) -> NDArray[np.float32]:
    left, _, right = np.linalg.svd(product, full_matrices=False)
    orthogonal: NDArray[np.float32] = (left @ right).astype(np.float32)
    return orthogonal
