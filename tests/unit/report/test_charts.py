"""Charts: what is drawn is inside the drawing, and axes have round numbers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotclip_server.report.charts import (
    MOST_DOTS,
    line_chart,
    moving_average,
    nice_ticks,
    thinned,
)

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)


@given(NUMBERS, NUMBERS)
def test_ticks_enclose_the_range_in_even_steps(one: float, other: float) -> None:
    low, high = sorted((one, other))
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1e-9) + 1e-9
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    steps = [after - before for before, after in pairwise(ticks)]
    assert max(steps) - min(steps) <= 1e-6 * max(steps)


def test_ticks_are_round() -> None:
    assert nice_ticks(0.13, 0.58) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert nice_ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]


@given(st.lists(st.tuples(st.integers(0, 10**6), NUMBERS), min_size=1, max_size=60))
def test_everything_is_inside_the_drawing(points: list[tuple[float, float]]) -> None:
    chart = line_chart("a", {"b": sorted(points)}, x_label="step", smooth=("b",))
    assert chart is not None
    for path in chart.paths:
        for place in path.path.split():
            x, y = map(float, place.split(","))
            assert chart.left - 0.1 <= x <= chart.right + 0.1
            assert chart.top - 0.1 <= y <= chart.bottom + 0.1


def test_what_is_not_finite_is_left_out_and_nothing_is_no_chart() -> None:
    assert line_chart("a", {"b": [(0, math.nan), (1, math.inf)], "c": []}, x_label="step") is None
    chart = line_chart("a", {"b": [(0, math.nan), (1, 2.0), (2, 3.0)]}, x_label="step")
    assert chart is not None
    assert [dot.label for dot in chart.paths[0].dots] == ["b: 2 at step 1", "b: 3 at step 2"]


def test_a_noisy_line_is_drawn_with_its_average() -> None:
    points = [(float(n), float(n % 2)) for n in range(MOST_DOTS + 1)]
    chart = line_chart("a", {"b": points}, x_label="step", smooth=("b",))
    assert chart is not None
    assert [(path.faint, path.colour) for path in chart.paths] == [(True, 0), (False, 0)]
    assert moving_average([(0, 1.0), (1, 4.0), (2, 1.0)]) == [(0, 2.5), (1, 2.0), (2, 2.5)]


def test_thinned_keeps_the_mean() -> None:
    points = [(float(n), float(n)) for n in range(1000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert sum(y for _, y in few) / 100 == pytest.approx(499.5)
    assert thinned(points, 1000) == points
