"""The metrics that Jina Finetuner reported: DocArray's definitions (docarray 0.21,
`docarray/math/evaluation.py`).

They see only the list of the first k results, of length L = min(k, n), of which z are relevant;
R is the number of relevant items in the index, rel(i) in {0, 1}, gains don't count:

    precision@k = z / L      recall@k = z / R      hit@k = [z > 0]      F1@k of these two
    AP = Σ rel(i) precision@i / z                  RR = 0 beyond the list
    R-precision = precision@z                      DCG@k = rel(1) + Σ_{i≥2} rel(i) / log2(i)
    nDCG@k = DCG@k / that of the same list with its relevant items first

Where z is 0 so is each of them. Ties count by expectation, where DocArray's answer depends on
the order of the corpus.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from hotclip_server.training.ties import TiedRanking


def docarray_metrics(ranking: TiedRanking, k: int) -> dict[str, float]:
    """Of one query with a relevant item in the index."""
    means: dict[str, float] = defaultdict(float)
    for chance, found in ranking.cut(k):
        for name, value in _of_list(found, ranking.relevant).items():
            means[name] += chance * value
    return dict(means)


def _of_list(found: TiedRanking, total: int) -> dict[str, float]:
    length, hits = found.items, found.relevant
    relevant = max(hits, 1)  # where it divides, the dividend is 0 without hits
    weight = 1 / np.log2(np.maximum(np.arange(1, length + 1), 2))
    dcg = float((found.chances * weight).sum())
    average = float(found.precision_sums().sum()) / relevant
    return {
        "precision_at_k": hits / length,
        "recall_at_k": hits / total,
        "f1_score_at_k": 2 * hits / (length + total),
        "hit_at_k": float(hits > 0),
        "average_precision": average,
        "average_precision_at_k": average,
        "reciprocal_rank": found.reciprocal_rank(),
        "r_precision": float(found.chances[:hits].sum()) / relevant,
        "dcg_at_k": dcg,
        "ndcg_at_k": dcg / float(weight[:relevant].sum()),
    }
