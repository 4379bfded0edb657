"""Shifts and overlaps are what they are defined as."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hotclip_server.drift.shift import (
    MOST_QUERIES,
    SHARES,
    cosines,
    nearest,
    overlap_of_queries,
    overlap_within,
    shift_of,
)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def points(count: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)))


def test_a_shift_is_the_cosine_of_old_and_new() -> None:
    old = points(50)
    new = unit(old + 0.3 * points(50, seed=1))
    found = cosines(old, new)
    np.testing.assert_allclose(
        found, [float(a @ b) for a, b in zip(old, new, strict=True)], atol=1e-6
    )
    shift = shift_of(found)
    assert shift is not None
    assert shift.items == 50
    assert shift.mean == pytest.approx(found.mean())
    assert shift.quantiles == pytest.approx(np.quantile(found, SHARES))
    assert shift_of(np.zeros(0)) is None


def test_neighbours_are_those_of_the_whole_matrix_and_no_point_is_its_own() -> None:
    rows = points(700)
    scores = rows @ rows.T
    np.fill_diagonal(scores, -np.inf)
    wanted = np.argsort(-scores, axis=1)[:, :5]
    found = nearest(rows, rows, 5, leave_out=np.arange(700))
    assert (found == wanted).mean() > 0.999  # ties within rounding may swap
    assert not (found == np.arange(700)[:, None]).any()


def test_nothing_moves_means_that_every_neighbour_stays_also_among_copies() -> None:
    rows = np.repeat(points(40), 3, axis=0)
    within = overlap_within(rows, rows, 7)
    assert within is not None
    assert (within.mean, within.p10, within.same_first, within.k) == (1.0, 1.0, 1.0, 7)


def test_an_overlap_is_the_share_of_common_neighbours() -> None:
    old, new = points(60), points(60, dim=8, seed=1)
    within = overlap_within(old, new, 6)
    assert within is not None
    a, b = (nearest(rows, rows, 6, np.arange(60)) for rows in (old, new))
    shares = [len(set(x) & set(y)) / 6 for x, y in zip(a, b, strict=True)]
    assert within.mean == pytest.approx(np.mean(shares))
    assert within.p10 == pytest.approx(np.quantile(shares, 0.1))
    assert within.same_first == pytest.approx(np.mean(a[:, 0] == b[:, 0]))
    # Chance: each of 59 is among 6 with 6/59.
    assert within.mean == pytest.approx(6 / 59, abs=0.06)


def test_few_points_and_many_points() -> None:
    assert overlap_within(points(1), points(1), 10) is None
    two = overlap_within(points(2), points(2, seed=3), 10)
    assert two is not None
    assert (two.k, two.mean) == (1, 1.0)
    many = overlap_within(points(MOST_QUERIES + 50, 4), points(MOST_QUERIES + 50, 4), 3)
    assert many is not None
    assert (many.queries, many.mean) == (MOST_QUERIES, 1.0)


def test_what_queries_find() -> None:
    rows, queries = points(30), points(5, seed=2)
    turned = rows[:, ::-1], queries[:, ::-1]
    same = overlap_of_queries((queries, rows), (turned[1], turned[0]), 4)
    assert same is not None
    assert (same.queries, same.k, same.mean, same.same_first) == (5, 4, 1.0, 1.0)
    opposite = overlap_of_queries((queries, rows), (-queries, rows), 15)
    assert opposite is not None
    assert (opposite.mean, opposite.same_first) == (0.0, 0.0)
    assert overlap_of_queries((queries[:0], rows), (queries[:0], rows), 4) is None
    assert overlap_of_queries((queries, rows[:0]), (queries, rows[:0]), 4) is None
