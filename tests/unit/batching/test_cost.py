"""Predicting what batches take."""

from __future__ import annotations

import gc
import itertools
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hotclip_server.batching.cost import (
    EDGES,
    LONGEST_BATCH_S,
    CostModel,
    TowerCost,
    bucket_of,
    fit,
)
from hotclip_server.encoding.engines.protocol import EngineFigures
from hotclip_server.encoding.protocol import Tower

from .simulation import Speed, version

SPEED = Speed(launch_s=0.003, item_s=0.001, token_s=0.0002, best_batch=16)


@settings(max_examples=100, deadline=None)
@given(
    launch_s=st.floats(0, 0.01),
    item_s=st.floats(0.0001, 0.01),
    token_s=st.floats(0.00001, 0.001),
    noise=st.lists(st.floats(0.97, 1.03), min_size=15, max_size=15),
)
def test_finds_the_parts_of_what_was_measured(launch_s, item_s, token_s, noise):
    grid = list(itertools.product((1, 2, 4, 8, 32), (4, 16, 77)))
    points = [
        (n, length, factor * (launch_s + n * (item_s + token_s * length)))
        for (n, length), factor in zip(grid, noise, strict=True)
    ]
    launch, item, token = fit(points)
    assert min(launch, item, token) >= 0
    for n, length, seconds in points:
        assert launch + n * (item + token * length) == pytest.approx(seconds, rel=0.15)


@pytest.mark.parametrize("points", [[(4, 10, 0.08)], [(1, 10, 0.02), (8, 10, 0.16)]])
def test_few_points_mean_proportional(points):
    launch, item, token = fit(points)
    assert launch == 0
    assert 2 * (item + token * 10) == pytest.approx(0.04)


@settings(max_examples=300, deadline=None)
@given(
    points=st.lists(
        st.tuples(st.integers(1, 300), st.integers(1, 77), st.floats(1e-5, 100)),
        min_size=1,
        max_size=20,
    ),
    same_items=st.booleans(),
    same_length=st.booleans(),
)
def test_any_points_give_a_fit(points, same_items, same_length):
    (items, length, _), *_ = points
    points = [
        (items if same_items else n, length if same_length else k, seconds)
        for n, k, seconds in points
    ]
    parts = fit(points)
    assert min(parts) >= 0
    assert max(parts) > 0


def measured() -> TowerCost:
    cost = TowerCost(32)
    cost.calibrate(SPEED.figures())
    return cost


def test_batches_are_filled_by_cost():
    cost = measured()
    assert cost.most_items(10) == 16
    full_s = SPEED.seconds([10] * 16)
    assert cost.full_s == pytest.approx(full_s)
    for length in (3, 30, 70):
        most = cost.most_items(length)
        assert SPEED.seconds([length] * most) <= full_s * 1.001
        assert SPEED.seconds([length] * (most + 1)) > full_s * 0.999


def test_no_batch_is_meant_to_take_long():
    slow = Speed(launch_s=0.0, item_s=0.2, token_s=0.0, best_batch=16)
    cost = TowerCost(32)
    cost.calibrate(slow.figures())
    assert cost.most_items(1) == int(LONGEST_BATCH_S / 0.2)
    slower = Speed(launch_s=0.0, item_s=2.0, token_s=0.0, best_batch=16)
    cost.calibrate(slower.figures())
    assert cost.most_items(1) == 1


def test_batches_are_as_long_as_they_may_be_where_the_largest_that_was_measured_is_best():
    slow = EngineFigures(best_batch=4, seconds=((1, 1, 0.1), (2, 1, 0.17), (4, 1, 0.31)))
    cost = TowerCost(32)
    cost.calibrate(slow)
    assert cost.most_items(1) == 6
    assert cost.predict(6, 1) <= LONGEST_BATCH_S < cost.predict(7, 1)
    flat = EngineFigures(best_batch=2, seconds=((1, 1, 0.1), (2, 1, 0.18), (4, 1, 0.36)))
    cost.calibrate(flat)
    assert cost.most_items(1) == 2


def test_follows_a_device_that_becomes_slower():
    cost = measured()
    for _ in range(40):
        cost.observe(8, 10, 1.7 * SPEED.seconds([10] * 8))
    assert cost.predict(4, 20) == pytest.approx(1.7 * SPEED.seconds([20] * 4), rel=0.03)


@settings(max_examples=50, deadline=None)
@given(outlier=st.floats(1e-6, 1e4))
def test_one_outlier_moves_little(outlier):
    cost = measured()
    before = cost.predict(8, 10)
    cost.observe(8, 10, outlier)
    assert 0.9 <= cost.predict(8, 10) / before <= 1.1


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    first=st.floats(1, 5),
)
def test_learns_from_batches_where_nothing_was_measured(seed, first):
    """The first batch may be slow: weights are touched, memory is mapped."""
    cost, chosen = TowerCost(32), random.Random(seed)
    assert not cost.known
    assert cost.predict(8, 10) == 0
    cost.observe(4, 12, first * SPEED.seconds([12] * 4))
    for _ in range(200):
        n, length = chosen.randint(1, 32), chosen.randint(4, 60)
        cost.observe(n, length, chosen.uniform(0.95, 1.05) * SPEED.seconds([length] * n))
    for n, length in ((1, 10), (8, 10), (32, 40)):
        assert cost.predict(n, length) == pytest.approx(SPEED.seconds([length] * n), rel=0.35)


def test_a_new_engine_is_a_new_cost():
    cost = measured()
    cost.observe(8, 10, 1.0)
    fast = Speed(launch_s=0.001, token_s=0.0001, best_batch=4, padded=False)
    cost.calibrate(fast.figures())
    assert cost.predict(4, 10) == pytest.approx(fast.seconds([10] * 4), rel=0.01)
    assert cost.most_items(10) == 4
    assert not cost.padded


def test_impossible_figures_change_nothing() -> None:
    cost = TowerCost(64)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cost.calibrate(EngineFigures(best_batch=4, seconds=((1, 1, 0.0),), padded=False))
        assert cost.padded
        cost.observe(4, 8, 0.01)
        assert cost.predict(4, 8) == pytest.approx(0.01)


def test_no_figures_are_no_news():
    cost = measured()
    before = cost.predict(3, 3)
    for figures in (None, EngineFigures(best_batch=1, seconds=())):
        cost.calibrate(figures)
        assert cost.predict(3, 3) == before


def test_the_configured_most_is_the_most():
    figures = SPEED.figures()
    for most_ever in (1, 5, 100):
        cost = TowerCost(32, most_ever)
        assert cost.most == min(32, most_ever)
        cost.calibrate(figures)
        assert cost.most_items(10) == min(16, most_ever)
        assert cost.most_items(1) <= most_ever


def test_towers_are_apart_and_go_with_their_encoder():
    model = CostModel(32)
    live = version("a", SPEED)
    assert model.of(live.encoder, Tower.TEXT) is model.of(live.encoder, Tower.TEXT)
    assert model.of(live.encoder, Tower.TEXT) is not model.of(live.encoder, Tower.VISION)
    assert len(model._towers) == 1
    del live
    gc.collect()
    assert len(model._towers) == 0


def test_buckets_are_in_order_and_cover_every_length():
    buckets = [bucket_of(length) for length in range(3000)]
    assert buckets == sorted(buckets)
    for number, edge in enumerate(EDGES):
        assert bucket_of(edge) == number
        assert bucket_of(edge + 1) == number + 1
