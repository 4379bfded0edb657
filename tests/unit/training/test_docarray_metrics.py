"""What Finetuner reported, by hand from the formulas of docarray 0.21."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hotclip_server.training.metrics import query_metrics


def of(relevant: list[int], k: int) -> dict[str, float]:
    """Items in order of falling, distinct scores."""
    scores = np.arange(len(relevant), 0, -1, dtype=np.float64)
    found = query_metrics(scores, np.array(relevant, dtype=bool), k, compat="finetuner")
    return {name: value for name, value in found.items() if name not in BESIDE}


BESIDE = ("hit_at_1", "hit_at_5", "hit_at_10", "rank")  # ours, whatever the definitions


def test_list_shorter_than_the_relevant():
    # Relevant at ranks 2, 4 and 7; the list ends at 5, so DocArray knows of two.
    dcg = 1 / math.log2(2) + 1 / math.log2(4)  # rank 2 is not discounted
    assert of([0, 1, 0, 1, 0, 0, 1, 0], k=5) == pytest.approx(
        {
            "precision_at_k": 2 / 5,
            "recall_at_k": 2 / 3,
            "f1_score_at_k": 2 * (2 / 5) * (2 / 3) / (2 / 5 + 2 / 3),
            "hit_at_k": 1,
            "average_precision": (1 / 2 + 2 / 4) / 2,  # over the two that were retrieved
            "average_precision_at_k": (1 / 2 + 2 / 4) / 2,
            "reciprocal_rank": 1 / 2,
            "r_precision": 1 / 2,  # of the first two, as two were retrieved
            "dcg_at_k": dcg,
            "ndcg_at_k": dcg / 2,  # [1, 1, 0, 0, 0]: 1 + 1 / log2(2)
        }
    )


def test_first_rank_and_three_hits():
    dcg = 1 + 1 / math.log2(3) + 1 / math.log2(6)
    found = of([1, 0, 1, 0, 0, 1], k=20)
    assert found["dcg_at_k"] == pytest.approx(dcg)
    assert found["ndcg_at_k"] == pytest.approx(dcg / (1 + 1 + 1 / math.log2(3)))
    assert found["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)
    assert found["precision_at_k"] == pytest.approx(3 / 6)  # of the list, which is not of 20
    assert found["r_precision"] == pytest.approx(2 / 3)


def test_nothing_in_the_list():
    assert set(of([0, 0, 0, 1], k=3).values()) == {0.0}


def test_one_relevant_item_as_in_the_tutorials():
    # A text has one image: precision is hit / 20, recall is hit, nDCG is DCG.
    found = of([0, 0, 0, 0, 1, *[0] * 95], k=20)
    assert found["precision_at_k"] == pytest.approx(1 / 20)
    assert found["recall_at_k"] == found["hit_at_k"] == 1
    assert found["dcg_at_k"] == found["ndcg_at_k"] == pytest.approx(1 / math.log2(5))
    assert found["average_precision"] == found["reciprocal_rank"] == pytest.approx(1 / 5)
    assert found["r_precision"] == 0


def test_gains_do_not_count():
    scores, gains = np.array([3.0, 2.0, 1.0]), np.array([0.2, 0.0, 0.9])
    graded = query_metrics(scores, gains, 3, compat="finetuner")
    assert graded == query_metrics(scores, gains > 0, 3, compat="finetuner")
