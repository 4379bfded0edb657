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
that were not fitted.

How well the choice serves is measured by cross-fitting: the items are cut into FOLDS parts, and
each item is mapped by a map that was fitted on the other parts, as the points of a collection
are that no map was fitted on. Then all items are searched among, not only a part of them: among
fewer, neighbours are farther from each other and easier to tell apart, which would flatter. The
map that serves is fitted on all of them. Searches of a collection find less than is told if these
are a small sample of it, and as much or more if they are all of it.

Serving maps the query, not what is stored: the product of a new query q with a mapped point xW
is the product of qWᵀ with x, at one small product a query; the stored vectors and their index
stay as they are, and nothing has to be undone. An orthogonal W keeps lengths, so this is the
order of cosines. Any other W does not: then the nearest by product are candidates, of which the
vectors are looked up and the cosines with xW computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotclip_server.drift.shift import MOST_QUERIES, Vectors, nearest

LEAST_ITEMS = 64
"""With fewer, a map is hardly fitted and nothing is measured."""
FOLDS = 4
"""Parts of the items: a map is fitted on all but one, and measured on that."""
PROCRUSTES, RIDGE = "procrustes", "ridge"
CANDIDATES = 4
"""Times the hits that are asked for, where products do not order as cosines do."""
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of an item."""
_CHOICES = (
    (PROCRUSTES, 0.0),
    *((method, penalty) for penalty in _PENALTIES for method in (PROCRUSTES, RIDGE)),
)

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
        return _unit(vectors @ self.matrix)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Measured with items that the maps were not fitted on.

    Recall is the share of the k nearest by the new version itself that are among the k nearest
    by the map, both among all items. Among more points it is lower, because neighbours are
    closer.
    """

    items: int
    """That were searched among: all."""
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
    """All, and as many as were measured with: no map was measured with what it was fitted on."""


def fit_bridge(
    old: Vectors,
    new: Vectors,
    *,
    queries: tuple[Vectors, Vectors],
    k: int,
    seed: int = 0,
) -> Bridge:
    """Fits every map, takes the best, measures it; see the module.

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
    folds = np.array_split(order, FOLDS)
    rests = [np.setdiff1d(order, fold, assume_unique=True) for fold in folds]
    parts = [_Moments.of(old[rest], new[rest]) for rest in rests]
    candidates = [parts[0].fit(method, penalty) for method, penalty in _CHOICES]
    errors = [error_of(one, old[folds[0]], new[folds[0]]) for one in candidates]
    best = candidates[int(np.argmin(errors))]
    mapped = np.empty((len(old), new.shape[1]), np.float32)
    for fold, part in zip(folds, parts, strict=True):
        mapped[fold] = old[fold] @ part.fit(best.method, best.penalty).matrix
    whole = _Moments.of(old, new).fit(best.method, best.penalty)
    asked = order[:MOST_QUERIES]
    return Bridge(whole, measure(whole, mapped, old, new, queries, k, asked), len(old))


def error_of(linear: LinearMap, old: Vectors, new: Vectors) -> float:
    """1 − the mean cosine of mapped and new vectors."""
    return 1.0 - float(np.einsum("ij,ij->i", linear.points(old), new).mean())


def measure(
    linear: LinearMap,
    mapped: Vectors,
    old: Vectors,
    new: Vectors,
    queries: tuple[Vectors, Vectors],
    k: int,
    asked: NDArray[np.int64],
) -> Quality:
    """How well a kind of map serves these items, as a search would use it.

    Args:
        linear: Of that kind.
        mapped: `old`, each by a map of that kind; float32 (n, new dim), not of unit length.
        old: (n, old dim), unit rows.
        new: (n, new dim), unit rows.
        queries: Texts by both versions, (m, dim) each; m may be 0.
        k: Length of the lists.
        asked: Rows of the items that search among all others.
    """
    k = min(k, len(old) - 1)
    exact = nearest(new[asked], new, k, leave_out=asked)
    over = found_over(linear, new[asked], mapped, k, leave_out=asked)
    bound = nearest(old[asked], old, k, leave_out=asked)
    query_recall = query_recall_of_bound = None
    if len(queries[1]):
        wanted = nearest(queries[1], new, k)
        query_recall = _recall(found_over(linear, queries[1], mapped, k), wanted)
        query_recall_of_bound = _recall(nearest(queries[0], old, k), wanted)
    return Quality(
        items=len(old),
        k=k,
        cosine_mean=float(np.einsum("ij,ij->i", _unit(mapped), new).mean()),
        recall=_recall(over, exact),
        recall_of_bound=_recall(bound, exact),
        queries=len(queries[1]),
        query_recall=query_recall,
        query_recall_of_bound=query_recall_of_bound,
    )


def found_over(
    linear: LinearMap,
    queries: Vectors,
    mapped: Vectors,
    k: int,
    leave_out: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Rows of the k points that new queries find over a map, as a search does it.

    Args:
        linear: Says how its kind is searched with.
        queries: (q, new dim), unit rows.
        mapped: Old vectors by a map, (n, new dim), not of unit length.
        leave_out: See `nearest`.
    """
    if linear.keeps_lengths:
        return nearest(queries, mapped, k, leave_out)
    most = len(mapped) - (leave_out is not None)
    candidates = nearest(queries, mapped, min(CANDIDATES * k, most), leave_out)
    scores = np.take_along_axis(queries @ _unit(mapped).T, candidates, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(candidates, order, axis=1)


def _recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    common = [len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)]
    return float(np.mean(common) / exact.shape[1])


@dataclass(frozen=True)
class _Moments:
    """What of old rows X and new rows Y the maps depend on."""

    square: Matrix
    """XᵀX."""
    product: Matrix
    """XᵀY."""
    items: int

    @classmethod
    def of(cls, old: Vectors, new: Vectors) -> _Moments:
        """Of the rows of two versions of the same items."""
        x, y = old.astype(np.float64), new.astype(np.float64)
        return cls(x.T @ x, x.T @ y, len(x))

    def fit(self, method: str, penalty: float) -> LinearMap:
        """The map that minimises what the module says."""
        weight = penalty * self.items
        towards = self.product + weight * self._anchor
        if method == PROCRUSTES:
            return LinearMap(_orthogonal(towards), method, penalty)
        solved = np.linalg.solve(self.square + weight * np.eye(len(self.square)), towards)
        return LinearMap(solved.astype(np.float32), method, penalty)

    @property
    def _anchor(self) -> Matrix:
        old, new = self.product.shape
        return np.eye(old) if old == new else np.zeros((old, new))


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.maximum(norms, 1e-12)
    return unit


def _orthogonal(product: Matrix) -> NDArray[np.float32]:
    left, _, right = np.linalg.svd(product, full_matrices=False)
    orthogonal: NDArray[np.float32] = (left @ right).astype(np.float32)
    return orthogonal
