"""The standard definitions, against a library of information retrieval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotclip_server.training.metrics import query_metrics

THEIRS = {
    "precision_at_k": "precision@{k}",
    "recall_at_k": "recall@{k}",
    "f1_score_at_k": "f1@{k}",
    "hit_at_k": "hit_rate@{k}",
    "hit_at_5": "hit_rate@5",
    "average_precision": "map",
    "reciprocal_rank": "mrr",
    "r_precision": "r-precision",
    "dcg_at_k": "dcg@{k}",
    "ndcg_at_k": "ndcg@{k}",
}

Judge = Callable[[list[float], list[int], int], Mapping[str, float]]


@pytest.fixture(scope="module")
def ranx() -> Iterator[Judge]:
    """Its metrics by our names; interpreted, because to compile each takes many seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", True)
        from ranx import Qrels, Run, evaluate

        def judge(scores: list[float], gains: list[int], k: int) -> Mapping[str, float]:
            judged = {str(i): gain for i, gain in enumerate(gains) if gain}
            run = {str(i): score for i, score in enumerate(scores)}
            names = [name.format(k=k) for name in THEIRS.values()]
            found = evaluate(Qrels({"q": judged}), Run({"q": run}), names)
            return {ours: found[theirs] for ours, theirs in zip(THEIRS, names, strict=True)}

        yield judge


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(-10_000, 10_000), st.sampled_from([0, 0, 0, 1, 2, 3])),
        min_size=1,
        max_size=40,
        unique_by=lambda item: item[0],
    ).filter(lambda items: any(gain for _, gain in items)),
    st.integers(1, 60).filter(lambda k: k != 5),
)
def test_equal_to_ranx(ranx: Judge, items: list[tuple[int, int]], k: int):
    scores, gains = [score / 10_000 for score, _ in items], [gain for _, gain in items]
    ours = query_metrics(np.array(scores), np.array(gains, dtype=np.float64), k)
    for name, theirs in ranx(scores, gains, k).items():
        assert ours[name] == pytest.approx(theirs, rel=1e-12), name
