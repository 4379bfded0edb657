"""Retrieval metrics in float64, numpy only.

Definitions for one query with R > 0 relevant of n items, gain g(i) >= 0 and rel(i) = [g(i) > 0]
at rank i from 1 (Manning, Raghavan, Schütze 2008, chapter 8; Järvelin and Kekäläinen 2002 for
DCG with graded gains):

    precision@k = Σ_{i≤k} rel / k          recall@k = Σ_{i≤k} rel / R       hit@k = any rel in i≤k
    AP = Σ rel(i) precision@i / R          AP@k: the sum to k, over min(k, R)
    RR = 1 / rank of the first relevant    R-precision = precision@R
    DCG@k = Σ_{i≤k} g / log2(i + 1)        nDCG@k = DCG@k / that of the largest gains first
    F1@k = harmonic mean of precision@k and recall@k

Equal scores count by expectation over all orders of the tied items, so no metric depends on the
order of the corpus, and constant embeddings score as chance does.

`compat` takes definitions of other programs, so that numbers stay comparable with theirs:

    finetuner        DocArray's, see docarray_metrics.py
    clip_benchmark   recall@k is hit@k
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hotclip_server.training.docarray_metrics import docarray_metrics
from hotclip_server.training.errors import InvalidPairs
from hotclip_server.training.ties import TiedRanking

Compat: TypeAlias = Literal["standard", "finetuner", "clip_benchmark"]
Gains: TypeAlias = NDArray[np.bool_] | NDArray[np.floating]

DEFAULT_K = 20
HITS = (1, 5, 10)  # hit rates reported beside the one at k


def retrieval_metrics(
    rows: Iterable[tuple[NDArray[np.floating], Gains]],
    k: int = DEFAULT_K,
    compat: Compat = "standard",
) -> dict[str, float]:
    """Means over the queries that have a relevant item; `queries` is their number.

    Each row is one query: scores [n], higher is better, and gains [n], above 0 for what is
    relevant. Raises ValueError for a score or gain that is not finite, a negative gain and
    k < 1; InvalidPairs if no query counts.
    """
    found = [query_metrics(scores, gains, k, compat) for scores, gains in rows if gains.any()]
    if not found:
        raise InvalidPairs("no query has a relevant item in the index: all scores are 0")
    means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    means["mean_rank"] = means.pop("rank")
    means["median_rank"] = float(np.median([one["rank"] for one in found]))
    means["queries"] = float(len(found))
    return means


def query_metrics(
    scores: NDArray[np.floating],
    gains: Gains,
    k: int = DEFAULT_K,
    compat: Compat = "standard",
) -> dict[str, float]:
    """All metrics of one query; `rank` is the expected rank of the first relevant item."""
    _check(scores, gains, k)
    ranking = TiedRanking.of(scores, gains)
    if not ranking.relevant:
        raise ValueError("no item is relevant to this query")
    found = {
        **(docarray_metrics(ranking, k) if compat == "finetuner" else _standard(ranking, gains, k)),
        **{f"hit_at_{n}": ranking.hit(n) for n in HITS},
        "rank": ranking.first_rank(),
    }
    if compat == "clip_benchmark":
        found["recall_at_k"] = found["hit_at_k"]
    return found


def _standard(ranking: TiedRanking, gains: Gains, k: int) -> dict[str, float]:
    total = ranking.relevant
    top = min(k, ranking.items)
    hits = float(ranking.chances[:top].sum())
    precisions = ranking.precision_sums()
    discount = 1 / np.log2(np.arange(2, top + 2))
    dcg = float((ranking.gains[:top] * discount).sum())
    best = np.sort(gains.astype(np.float64))[::-1][:top]
    return {
        "precision_at_k": hits / k,
        "recall_at_k": hits / total,
        "f1_score_at_k": 2 * hits / (k + total),  # linear in the hits, so exact with ties
        "hit_at_k": ranking.hit(k),
        "average_precision": float(precisions.sum()) / total,
        "average_precision_at_k": float(precisions[:top].sum()) / min(k, total),
        "reciprocal_rank": ranking.reciprocal_rank(),
        "r_precision": float(ranking.chances[:total].sum()) / total,
        "dcg_at_k": dcg,
        "ndcg_at_k": dcg / float((best * discount).sum()),
    }


def _check(scores: NDArray[np.floating], gains: Gains, k: int) -> None:
    if scores.ndim != 1 or scores.shape != gains.shape:
        raise ValueError(f"scores {scores.shape} and gains {gains.shape} must be equal 1-D")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity: an embedding is not finite")
    if not (np.isfinite(gains) & (gains >= 0)).all():
        raise ValueError("gains must be finite and at least 0")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
