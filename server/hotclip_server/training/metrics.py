"""Retrieval metrics in float64, numpy only.

Definitions for one query with R > 0 relevant of n items, rel(i) in {0, 1} at rank i from 1
(Manning, Raghavan, Schütze 2008, chapter 8; Järvelin and Kekäläinen 2002 for DCG):

    precision@k = Σ_{i≤k} rel / k          recall@k = Σ_{i≤k} rel / R       hit@k = any rel in i≤k
    AP = Σ rel(i) precision@i / R          AP@k: the sum to k, over min(k, R)
    RR = 1 / rank of the first relevant    R-precision = precision@R
    DCG@k = Σ_{i≤k} rel / log2(i + 1)      nDCG@k = DCG@k / that of all relevant items first
    F1@k = harmonic mean of precision@k and recall@k

Equal scores count by expectation over all orders of the tied items, so no metric depends on the
order of the corpus, and constant embeddings score as chance does.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import comb

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HITS = (1, 5, 10)  # hit rates reported beside the one at k


def retrieval_metrics(
    rows: Iterable[tuple[NDArray[np.floating], NDArray[np.bool_]]], k: int = 20
) -> dict[str, float]:
    """Means over the queries that have a relevant item; `queries` is their number.

    Each row is one query: scores [n], higher is better, and which items are relevant [n].
    Raises ValueError for a score that is not finite, for k < 1 and if no query counts.
    """
    found = [query_metrics(scores, relevant, k) for scores, relevant in rows if relevant.any()]
    if not found:
        raise ValueError("no query has a relevant item in the index")
    means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    means["mean_rank"] = means.pop("rank")
    means["median_rank"] = float(np.median([one["rank"] for one in found]))
    means["queries"] = float(len(found))
    return means


def query_metrics(
    scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int = 20
) -> dict[str, float]:
    """All metrics of one query; `rank` is the expected rank of the first relevant item."""
    if scores.ndim != 1 or scores.shape != relevant.shape:
        raise ValueError(f"scores {scores.shape} and relevance {relevant.shape} must be equal 1-D")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity: an embedding is not finite")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    total = int(relevant.sum())
    if total == 0:
        raise ValueError("no item is relevant to this query")
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    ties = _Ties(scores[order], relevant[order])
    size = len(scores)
    top = min(k, size)
    position = np.arange(1, size + 1, dtype=np.float64)
    expected = ties.relevant / ties.size  # chance that the item at a rank is relevant
    discount = 1 / np.log2(position + 1)
    precision = float(expected[:top].sum()) / k
    recall = float(expected[:top].sum()) / total
    gained = ties.expected_precision_sum()
    dcg = float((expected * discount)[:top].sum())
    return {
        "precision_at_k": precision,
        "recall_at_k": recall,
        "f1_at_k": ties.expected_f1(k, total),
        "hit_at_k": ties.hit(k),
        **{f"hit_at_{n}": ties.hit(n) for n in HITS},
        "average_precision": float(gained.sum()) / total,
        "average_precision_at_k": float(gained[:top].sum()) / min(k, total),
        "reciprocal_rank": ties.reciprocal_rank(),
        "r_precision": float(expected[:total].sum()) / total,
        "dcg_at_k": dcg,
        "ndcg_at_k": dcg / float(discount[: min(k, total)].sum()),
        "rank": ties.first_rank(),
    }


class _Ties:
    """A ranking as groups of equal scores, described for the item at every rank ([n] each)."""

    def __init__(self, scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> None:
        count = len(scores)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(scores)) + 1])
        sizes = np.diff(np.concatenate([starts, [count]]))
        hits = np.add.reduceat(relevant.astype(np.float64), starts)
        self.start: Array = np.repeat(starts, sizes).astype(np.float64)  # items ranked above
        self.size: Array = np.repeat(sizes, sizes).astype(np.float64)  # items of the tie
        self.relevant: Array = np.repeat(hits, sizes)  # relevant items of the tie
        self.above: Array = np.repeat(np.cumsum(hits) - hits, sizes)  # relevant ranked above
        first = int(np.flatnonzero(hits)[0])
        self._first = (int(starts[first]), int(sizes[first]), int(hits[first]))

    def expected_precision_sum(self) -> Array:
        """[n]: expectation of rel(i) · precision@i."""
        position = np.arange(1, len(self.size) + 1, dtype=np.float64)
        inside = position - self.start  # 1 for the first of a tie
        others = np.divide(
            (inside - 1) * (self.relevant - 1),
            self.size - 1,
            out=np.zeros_like(position),
            where=self.size > 1,
        )
        result: Array = self.relevant / self.size * (self.above + 1 + others) / position
        return result

    def hit(self, k: int) -> float:
        """Chance of a relevant item among the first k: hypergeometric within the first tie."""
        start, size, relevant = self._first
        drawn = min(max(k - start, 0), size)
        return 1 - comb(size - relevant, drawn) / comb(size, drawn)

    def reciprocal_rank(self) -> float:
        """Expectation over where the first of r relevant among m tied items comes to stand."""
        start, size, relevant = self._first
        if relevant == size:
            return 1 / (start + 1)
        chance = relevant / size  # of standing first in the tie
        total = 0.0
        for inside in range(1, size - relevant + 2):
            total += chance / (start + inside)
            left = size - inside
            if left >= relevant:
                chance *= (left - relevant + 1) / left
        return total

    def first_rank(self) -> float:
        start, size, relevant = self._first
        return start + (size + 1) / (relevant + 1)

    def expected_f1(self, k: int, total: int) -> float:
        """2 · hits / (k + R) is linear in the hits, so its expectation is exact."""
        top = min(k, len(self.size))
        return 2 * float((self.relevant / self.size)[:top].sum()) / (k + total)
