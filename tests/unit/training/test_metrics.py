from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotclip_server.training.metrics import Compat, query_metrics, retrieval_metrics


def ranked(relevant: list[int], k: int) -> dict[str, float]:
    """Metrics of items already in order of falling, distinct scores."""
    scores = np.arange(len(relevant), 0, -1, dtype=np.float64)
    return query_metrics(scores, np.array(relevant, dtype=bool), k)


def test_hand_worked_ranking():
    found = ranked([0, 1, 0, 1, 0, 0, 1, 0], k=4)  # relevant at ranks 2, 4 and 7
    dcg = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found == pytest.approx(
        {
            "precision_at_k": 2 / 4,
            "recall_at_k": 2 / 3,
            "f1_score_at_k": 4 / 7,
            "hit_at_k": 1.0,
            "hit_at_1": 0.0,
            "hit_at_5": 1.0,
            "hit_at_10": 1.0,
            "average_precision": (1 / 2 + 2 / 4 + 3 / 7) / 3,
            "average_precision_at_k": (1 / 2 + 2 / 4) / 3,
            "reciprocal_rank": 1 / 2,
            "r_precision": 1 / 3,
            "dcg_at_k": dcg,
            "ndcg_at_k": dcg / ideal,
            "rank": 2.0,
        }
    )


def test_k_beyond_the_corpus_counts_the_missing_as_not_relevant():
    found = ranked([1, 0], k=20)
    assert found["precision_at_k"] == pytest.approx(1 / 20)
    assert found["recall_at_k"] == found["ndcg_at_k"] == 1.0


def test_constant_scores_score_as_chance():
    relevant = np.zeros(100, dtype=bool)
    relevant[3] = True
    found = query_metrics(np.ones(100), relevant, k=20)
    assert found["hit_at_k"] == pytest.approx(0.2)
    assert found["recall_at_k"] == pytest.approx(0.2)
    assert found["reciprocal_rank"] == pytest.approx(sum(1 / i for i in range(1, 101)) / 100)
    assert found["rank"] == pytest.approx(50.5)


def test_graded_gains_count_in_dcg_and_its_ideal():
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    found = query_metrics(scores, np.array([0.2, 0.0, 1.0, 0.5, 0.0]), k=3)
    dcg = 0.2 + 1 / math.log2(4)
    assert found["dcg_at_k"] == pytest.approx(dcg)
    ideal = 1 + 0.5 / math.log2(3) + 0.2 / math.log2(4)
    assert found["ndcg_at_k"] == pytest.approx(dcg / ideal)
    assert found["recall_at_k"] == pytest.approx(2 / 3)  # relevant is what has a gain
    assert found["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_recall_of_clip_benchmark_is_the_hit_rate():
    relevant = np.array([True, False, True, True])
    standard = query_metrics(np.arange(4.0), relevant, k=2)
    found = query_metrics(np.arange(4.0), relevant, k=2, compat="clip_benchmark")
    assert standard["recall_at_k"] == pytest.approx(2 / 3)
    assert found == {**standard, "recall_at_k": 1.0}


scores_and_gains = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 2), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0]), min_size=n, max_size=n).filter(any),
    )
)


@settings(deadline=None, max_examples=200)
@given(
    scores_and_gains,
    st.integers(1, 8),
    st.sampled_from(["standard", "finetuner", "clip_benchmark"]),
)
def test_ties_are_the_mean_over_all_orders(
    case: tuple[list[int], list[float]], k: int, compat: Compat
):
    scores, gains = np.array(case[0], dtype=np.float64), np.array(case[1])
    outcomes = []
    for order in itertools.permutations(range(len(scores))):
        tie_break = np.array(order) * 1e-6
        outcomes.append(query_metrics(scores + tie_break, gains, k, compat))
    found = query_metrics(scores, gains, k, compat)
    for name, value in found.items():
        assert value == pytest.approx(np.mean([one[name] for one in outcomes])), name


@pytest.mark.parametrize("compat", ["standard", "finetuner"])
def test_ties_of_a_large_index(compat: Compat):
    scores = np.zeros(20_000)
    gains = np.zeros(20_000)
    gains[:3000] = 1
    found = query_metrics(scores, gains, 1000, compat)
    assert found["precision_at_k"] == pytest.approx(0.15)
    assert found["hit_at_k"] == pytest.approx(1)
    share = 0.15  # nearly independent draws: the ratio of a geometric variable's expectation
    assert found["reciprocal_rank"] == pytest.approx(
        -share * math.log(share) / (1 - share), rel=1e-3
    )


@settings(deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
    st.integers(1, 40),
)
def test_bounds_and_independence_of_corpus_order(scores: list[float], random, k: int):
    relevant = [random.random() < 0.3 for _ in scores]
    relevant[0] = True
    order = list(range(len(scores)))
    random.shuffle(order)
    found = query_metrics(np.array(scores), np.array(relevant), k)
    shuffled = query_metrics(np.array(scores)[order], np.array(relevant)[order], k)
    assert found == pytest.approx(shuffled)
    for name, value in found.items():
        high = {"rank": len(scores), "dcg_at_k": k}.get(name, 1)
        assert (name == "rank") - 1e-9 <= value <= high + 1e-9, name
    assert found["hit_at_k"] + 1e-9 >= found["recall_at_k"]


def test_means_over_the_queries_that_count():
    rows: list[tuple[NDArray[np.float64], NDArray[np.bool_]]] = [
        (np.array([3.0, 2.0, 1.0]), np.array([True, False, False])),
        (np.array([3.0, 2.0, 1.0]), np.array([False, False, True])),
        (np.array([3.0, 2.0, 1.0]), np.array([False, False, True])),
        (np.array([3.0, 2.0, 1.0]), np.array([False, False, False])),
    ]
    found = retrieval_metrics(rows, k=1)
    assert found["queries"] == 3
    assert found["reciprocal_rank"] == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
    assert found["hit_at_k"] == pytest.approx(1 / 3)
    assert found["mean_rank"] == pytest.approx(7 / 3)
    assert found["median_rank"] == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_fail(value: float):
    with pytest.raises(ValueError, match="not finite"):
        query_metrics(np.array([value, 1.0]), np.array([True, False]))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="must be equal"):
        query_metrics(np.ones(2), np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="at least 0"):
        query_metrics(np.ones(2), np.array([1.0, -0.5]))
    with pytest.raises(ValueError, match="gains must be finite"):
        query_metrics(np.ones(2), np.array([1.0, math.nan]))
    with pytest.raises(ValueError, match="k must be"):
        query_metrics(np.ones(2), np.ones(2, dtype=bool), k=0)
    with pytest.raises(ValueError, match="no query"):
        retrieval_metrics([(np.ones(2), np.zeros(2, dtype=bool))])


def test_metrics_need_no_torch():
    import subprocess
    import sys

    code = "import sys, hotclip_server.training.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
