"""Rates, ratios, percentiles and arrivals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.timing import (
    Span,
    paired_ratio,
    percentile,
    poisson_arrivals,
    pooled_interval,
    smallest_near_best,
    steady_rate,
)


@given(
    seconds=st.floats(0.01, 10),
    clients=st.integers(1, 8),
    items=st.integers(1, 64),
    began=st.floats(0, 5),
    window=st.floats(0.1, 20),
)
def test_a_steady_load_has_its_rate_in_any_window(
    seconds: float, clients: int, items: int, began: float, window: float
) -> None:
    """Also in one that is shorter than a call."""
    turns = int((began + window) / seconds) + 2
    spans = [
        Span((turn - client / clients) * seconds, (turn + 1 - client / clients) * seconds, items)
        for client in range(clients)
        for turn in range(turns + 1)
    ]
    rate = steady_rate(spans, began, began + window)
    assert rate == pytest.approx(clients * items / seconds, rel=1e-6)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        steady_rate([Span(0, 1, 1)], 2.0, 2.0)


def test_a_paired_ratio_is_that_of_segments_side_by_side() -> None:
    """Halfway the machine slows down to a third, and one segment is disturbed."""
    assert paired_ratio([90, 91, 30, 29, 1], [100, 100, 33, 33, 33]) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("measured", "baseline", "problem"), [([], [], "no pairs"), ([1.0], [1.0, 2.0], "longer")]
)
def test_pairs_must_be_pairs(measured: list[float], baseline: list[float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        paired_ratio(measured, baseline)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([50, 95, 99]))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], share: int
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share / 100 * len(values) - 1e-9
    assert sum(value < found for value in values) < share / 100 * len(values)


def test_arrivals_are_poisson() -> None:
    """As many as the rate says, gaps exponential: their deviation is their mean."""
    arrivals = poisson_arrivals(200.0, 100.0, seed=0)
    assert abs(len(arrivals) - 20_000) < 4 * 20_000**0.5
    assert (np.diff(arrivals) > 0).all()
    assert arrivals[0] >= 0
    assert arrivals[-1] < 100
    gaps = np.diff(arrivals)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert np.array_equal(arrivals, poisson_arrivals(200.0, 100.0, seed=0))
    assert not np.array_equal(arrivals[:10], poisson_arrivals(200.0, 100.0, seed=1)[:10])


@given(st.floats(0.1, 50), st.floats(0, 3), st.integers(0, 100))
def test_arrivals_lie_within_the_run(rate: float, seconds: float, seed: int) -> None:
    arrivals = poisson_arrivals(rate, seconds, seed=seed)
    assert ((arrivals >= 0) & (arrivals < seconds)).all()


def test_the_knee_is_the_smallest_batch_that_is_nearly_best() -> None:
    assert smallest_near_best({1: 50, 8: 94, 16: 96, 32: 100, 64: 99}) == 16


def test_the_interval_of_a_ratio_is_that_of_windows_drawn_again() -> None:
    control = [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]
    doubled = [[2 * value for value in window] for window in control]
    assert pooled_interval(doubled, control, 99) == (2.0, 2.0)
    # Of three windows one is slow: whether it is drawn decides.
    slow = [[10.0] * 10, [1.0] * 10, [1.0] * 10]
    assert pooled_interval(slow, [[1.0] * 10] * 3, 99) == (1.0, 10.0)
    for wrong in ([], [[]]):
        with pytest.raises(ValueError, match="no windows"):
            pooled_interval(wrong, wrong, 99)
    with pytest.raises(ValueError, match="shorter"):
        pooled_interval(control, control[:1], 99)
