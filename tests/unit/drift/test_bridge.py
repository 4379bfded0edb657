"""Bridges: the maps are the ones of their formulas, the better one is taken, recall is measured."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hotclip_proto.v1 import drift_pb2
from hotclip_server.drift.bridge import (
    _CHOICES,
    FOLDS,
    LEAST_ITEMS,
    PROCRUSTES,
    RIDGE,
    LinearMap,
    _Moments,
    error_of,
    fit_bridge,
    found_over,
    measure,
)
from hotclip_server.drift.bridge_job import finds_more
from hotclip_server.drift.shift import nearest

NONE = (np.zeros((0, 16), np.float32), np.zeros((0, 16), np.float32))


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def points(count: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)))


def rotation(dim: int, seed: int = 1) -> NDArray[np.float64]:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    return np.asarray(q)


def top(scores: NDArray[np.float32], k: int = 10) -> NDArray[np.int64]:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def overlaps(found: NDArray[np.int64], exact: NDArray[np.int64]) -> list[float]:
    return [len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)]


def test_each_map_is_the_minimum_of_what_it_minimises() -> None:
    old, new = points(80), unit(points(80) @ rotation(16) + 0.2 * points(80, seed=5))
    x, y, eye = old.astype(np.float64), new.astype(np.float64), np.eye(16)
    rng = np.random.default_rng(3)

    def loss(w: NDArray[np.float64], penalty: float) -> float:
        return float(((x @ w - y) ** 2).sum() + penalty * len(x) * ((w - eye) ** 2).sum())

    found = [_Moments.of(old, new).fit(*choice) for choice in _CHOICES]
    assert {one.method for one in found} == {PROCRUSTES, RIDGE}
    for one in found:
        w = one.matrix.astype(np.float64)
        if one.method == PROCRUSTES:
            np.testing.assert_allclose(w.T @ w, eye, atol=1e-5)
        for _ in range(5):
            # A small step within what the map may be.
            other = w + 1e-2 * rng.standard_normal((16, 16))
            if one.method == PROCRUSTES:
                u, _, v = np.linalg.svd(other)
                other = u @ v
            assert loss(w, one.penalty) <= loss(other, one.penalty) + 1e-9


def test_a_rotated_space_is_bridged_exactly_and_searched_as_if_it_were_new() -> None:
    old = points(400)
    turn = rotation(16)
    new = unit(old @ turn)
    texts = points(20, seed=9), unit(points(20, seed=9) @ turn)
    bridge = fit_bridge(old, new, queries=texts, k=10)
    quality = bridge.quality
    assert bridge.map.method == PROCRUSTES
    np.testing.assert_allclose(bridge.map.matrix, turn, atol=1e-4)
    assert quality.cosine_mean == pytest.approx(1.0, abs=1e-5)
    assert (quality.recall, quality.query_recall) == (1.0, 1.0)
    # The old version finds the same by itself: a rotation changes no neighbour.
    assert (quality.recall_of_bound, quality.query_recall_of_bound) == (1.0, 1.0)
    assert (bridge.fitted_items, quality.items) == (400, 400)


def test_where_the_new_version_searches_differently_the_bridge_finds_more_of_it() -> None:
    """Stretched axes: a linear change that is no rotation, plus what no map can know."""
    rng = np.random.default_rng(4)
    old = points(1500)
    stretch = np.diag(rng.uniform(0.2, 3.0, 16)) @ rotation(16)
    new = unit(old @ stretch + 0.05 * rng.standard_normal((1500, 16)))
    queries = points(60, seed=8)
    texts = queries, unit(queries @ np.linalg.inv(stretch).T)
    bridge = fit_bridge(old, new, queries=texts, k=10)
    quality = bridge.quality
    assert bridge.map.method == RIDGE
    assert quality.recall > quality.recall_of_bound + 0.1
    assert quality.recall < 1.0
    assert fit_bridge(old, new, queries=texts, k=10).quality == quality
    # What is told is what texts find among all points, each mapped without having been fitted on.
    mapped = np.empty_like(new)
    for fold in np.array_split(np.random.default_rng(0).permutation(1500), FOLDS):
        rest = np.setdiff1d(np.arange(1500), fold)
        x, y = old[rest].astype(np.float64), new[rest].astype(np.float64)
        weight = bridge.map.penalty * len(rest) * np.eye(16)
        mapped[fold] = unit(old[fold] @ np.linalg.solve(x.T @ x + weight, x.T @ y + weight))
    shares = overlaps(top(texts[1] @ mapped.T), top(texts[1] @ new.T))
    assert quality.query_recall == pytest.approx(np.mean(shares), abs=0.02)


def test_recall_is_that_among_points_that_were_not_fitted() -> None:
    """A small sample of points that moved in ways that no map knows: what was fitted is found
    more easily, and so is what is searched for among a part of the sample."""
    turn = rotation(64)

    def points_by_both(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rng = np.random.default_rng(seed)
        old = unit(rng.standard_normal((count, 64)))
        return old, unit(old @ turn + 0.08 * rng.standard_normal((count, 64)))

    def found(linear: LinearMap, old: NDArray[np.float32], new: NDArray[np.float32]) -> float:
        asked = np.arange(len(old))
        over = found_over(linear, new, old @ linear.matrix, 10, leave_out=asked)
        return float(np.mean(overlaps(over, nearest(new, new, 10, leave_out=asked))))

    old, new = points_by_both(300, 1)
    none = np.zeros((0, 64), np.float32)
    bridge = fit_bridge(old, new, queries=(none, none), k=10)
    told = bridge.quality.recall
    others = [found(bridge.map, *points_by_both(300, seed)) for seed in range(2, 8)]
    assert told == pytest.approx(np.mean(others), abs=0.03)
    # What it was fitted on, and what is fewer, would flatter; a larger collection finds less.
    assert found(bridge.map, old, new) > told + 0.05
    assert found(bridge.map, *points_by_both(120, 9)) > told + 0.05
    assert found(bridge.map, *points_by_both(3000, 10)) < told - 0.05


def test_other_dimensions_and_hardly_changed_versions() -> None:
    old = points(300, dim=16)
    new = unit(old @ np.random.default_rng(6).standard_normal((16, 8)))
    narrow = fit_bridge(old, new, queries=(NONE[0], np.zeros((0, 8), np.float32)), k=5)
    assert narrow.map.matrix.shape == (16, 8)
    assert narrow.quality.recall > narrow.quality.recall_of_bound + 0.5
    assert narrow.quality.query_recall is None
    # Fewer items than dimensions: what was not seen stays as it is.
    wide = points(100, dim=256)
    near = unit(wide + 0.1 * points(100, dim=256, seed=7))
    none = np.zeros((0, 256), np.float32)
    bridge = fit_bridge(wide, near, queries=(none, none), k=5)
    plain = LinearMap(np.eye(256, dtype=np.float32), RIDGE, 0.0)
    assert bridge.quality.cosine_mean > 1 - error_of(plain, wide, near) - 0.02


def test_a_mapped_query_orders_as_mapped_points_do() -> None:
    old, queries = points(50), points(7, seed=2)
    orthogonal = LinearMap(rotation(16).astype(np.float32), PROCRUSTES, 0.0)
    by_query = nearest(orthogonal.queries(queries), old, 10)
    by_points = nearest(queries, orthogonal.points(old), 10)
    np.testing.assert_array_equal(by_query, by_points)


def test_too_few_items_are_refused() -> None:
    few = points(LEAST_ITEMS - 1)
    with pytest.raises(ValueError, match="at least 64"):
        fit_bridge(few, few, queries=NONE, k=5)
    enough = points(LEAST_ITEMS)
    same = fit_bridge(enough, enough, queries=NONE, k=100)
    assert same.quality.k == same.quality.items - 1
    asked = np.arange(LEAST_ITEMS)
    assert measure(same.map, enough, enough, enough, NONE, 5, asked).recall == 1.0


@pytest.mark.parametrize(
    ("points", "texts", "more"),
    [
        ((0.6, 0.5), None, True),
        ((0.5, 0.5), None, False),
        # People search by texts.
        ((0.5, 0.6), (0.6, 0.5), True),
        ((0.6, 0.5), (0.5, 0.5), False),
    ],
)
def test_a_bridge_that_finds_no_more_is_of_no_use(
    points: tuple[float, float], texts: tuple[float, float] | None, more: bool
) -> None:
    facts = drift_pb2.Bridge(recall=points[0], recall_of_bound=points[1])
    if texts is not None:
        facts.query_recall, facts.query_recall_of_bound = texts
    assert finds_more(facts) is more
