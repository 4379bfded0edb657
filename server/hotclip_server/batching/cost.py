"""Predicts how long a batch takes: measured points give the shape, actual times the scale.

A batch of n items takes launch + sum of (item + token * length) seconds. An engine that pads
runs every item at the length of the longest. No torch, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations
from weakref import WeakKeyDictionary

from hotclip_server.encoding.engines.protocol import EngineFigures
from hotclip_server.encoding.protocol import Encoder, Tower

Point = tuple[int, float, float]
"""Items, length, seconds."""

LONGEST_BATCH_S = 0.5
"""No batch of several items is meant to take longer, whatever its throughput: it is what a
query waits that finds the device busy."""
FOLLOW = 0.12
"""Weight of one batch in the exponential average of actual to predicted seconds."""
CLIP = math.log(2.0)
"""A batch moves that average as if it took at most twice or half of what is predicted, so one
outlier moves it by 9 %, and a lasting change is followed within some twenty batches."""
WORTH_A_PART = 1e-6
"""Of the mean square of relative errors: what a further part must explain to be believed."""
SINGULAR = 1e-9
REFIT_EVERY = 8
"""Batches between two fits to what was observed, where nothing was measured."""


def fit(points: Iterable[Point]) -> tuple[float, float, float]:
    """Least squares of relative errors with no negative part; fewer parts if they do as well.

    Returns:
        Seconds of a launch, of an item, of a token of an item.
    """
    # Sums of products over the points: what is left of them does not grow with their number.
    matrix = [[0.0] * 3 for _ in range(3)]
    right = [0.0] * 3
    total = 0
    for n, length, seconds in points:
        row = (1 / seconds, n / seconds, n * length / seconds)
        total += 1
        for i in range(3):
            right[i] += row[i]
            for j in range(3):
                matrix[i][j] += row[i] * row[j]
    best, best_error = (0.0, 0.0, right[2] / matrix[2][2]), math.inf
    for size in (1, 2, 3):
        for parts in sorted(combinations((0, 1, 2), size), reverse=True):
            found = _solve([[matrix[i][j] for j in parts] + [right[i]] for i in parts])
            if found is None or min(found) < 0:
                continue
            full = [0.0, 0.0, 0.0]
            for part, value in zip(parts, found, strict=True):
                full[part] = value
            # At the least squares the mean square is 1 - x·right / total.
            error = 1 - sum(x * r for x, r in zip(full, right, strict=True)) / total
            if error < 0.9 * best_error - WORTH_A_PART:
                best, best_error = (full[0], full[1], full[2]), error
    return best


def _of(shape: tuple[float, float, float], items: int, length: float) -> float:
    return shape[0] + items * (shape[1] + shape[2] * length)


def _solve(rows: list[list[float]]) -> list[float] | None:
    """Gauss; None where the equations say too little."""
    size = len(rows)
    diagonal = [row[at] for at, row in enumerate(rows)]
    for at in range(size):
        pivot = rows[at][at]
        # What is left of a part that the parts before explain is rounding.
        if pivot <= SINGULAR * diagonal[at]:
            return None
        for other in range(size):
            if other != at:
                factor = rows[other][at] / pivot
                rows[other] = [x - factor * y for x, y in zip(rows[other], rows[at], strict=True)]
    return [row[size] / row[at] for at, row in enumerate(rows)]


class TowerCost:
    """Seconds of batches of one tower of one encoder.

    Args:
        most_items: Items of a batch as long as nothing was measured.
        most_ever: Items of a batch at most, however short they are; 0: four times the best.
    """

    def __init__(self, most_items: int, most_ever: int = 0) -> None:
        self.launch_s = 0.0
        """Of a batch, however small."""
        self.full_s = math.inf
        """Of a full batch: as long as the best one takes, and not over `LONGEST_BATCH_S`; that
        long where the best one of those that were measured is the largest, and larger ones were
        not because they would take longer."""
        self.most = min(most_items, most_ever or most_items)
        """Items of a batch, however little they cost."""
        self.padded = True
        """Whether every item costs as much as the longest."""
        self._item_s = 0.0
        self._token_s = 0.0
        self._shape = (0.0, 0.0, 0.0)
        self._log_factor = 0.0
        self._figures: EngineFigures | None = None
        self._most_ever = most_ever
        self._best: tuple[int, int] | None = None  # items, length
        self._rising = False
        self._cells: dict[tuple[int, int], Point] = {}
        self._observed = 0

    @property
    def known(self) -> bool:
        """Whether anything was measured or observed."""
        return self._shape != (0.0, 0.0, 0.0)

    def calibrate(self, figures: EngineFigures | None) -> None:
        """Takes what was measured of the engine that serves now; cheap to repeat."""
        if figures is None or figures is self._figures or not figures.seconds:
            return
        shape = fit(figures.seconds)
        self.padded = figures.padded
        best, length = max(1, figures.best_batch), figures.seconds[0][1]
        largest = max(items for items, of, _ in figures.seconds if of == length)
        self._best = (best, length)
        # Twice as much would take too long and was not measured: it may yet be worth more.
        self._rising = best == largest and 2 * _of(shape, best, length) > LONGEST_BATCH_S
        self._log_factor = 0.0
        self._set(shape)
        self._figures = figures

    def predict(self, items: int, length: float) -> float:
        """Seconds of a batch of `items` of `length` tokens each; 0.0 as long as not known."""
        return _of((self.launch_s, self._item_s, self._token_s), items, length)

    def item_s(self, length: float) -> float:
        """What one more item of this length adds to a batch."""
        return self._item_s + self._token_s * length

    def share_s(self, length: float) -> float:
        """What an item costs in a full batch."""
        return self.item_s(length) + self.launch_s / self.most_items(length)

    def turn_share(self, added_s: float) -> float:
        """The share of a full batch that an item takes which makes it so much longer."""
        room_s = self.full_s - self.launch_s
        return max(1 / self.most, added_s / room_s if added_s < room_s else 1.0)

    def most_items(self, length: float) -> int:
        """Items of a full batch."""
        item_s = self.item_s(length)
        if item_s * self.most <= self.full_s - self.launch_s:
            return self.most
        return max(1, int((self.full_s - self.launch_s) / item_s))

    def counted(self, items: int, longest: int, tokens: int) -> float:
        """The length that each item of a batch counts as."""
        return longest if self.padded else tokens / items

    def observe(self, items: int, length: float, seconds: float) -> None:
        """Learns from a batch that ran, whose items counted as `length` each."""
        if seconds <= 0:
            return
        self._observed += 1
        if self._figures is None:
            self._remember(items, length, seconds)
            if self._observed <= REFIT_EVERY or self._observed % REFIT_EVERY == 0:
                self._log_factor = 0.0
                self._set(fit(self._cells.values()))
                return
        off = math.log(seconds / self.predict(items, length))
        self._log_factor += FOLLOW * max(-CLIP, min(CLIP, off))
        self._set(self._shape)

    def _remember(self, items: int, length: float, seconds: float) -> None:
        cell = (items.bit_length(), bucket_of(length))
        known = self._cells.get(cell)
        if known is not None:
            old = known[2] * (items * length) / (known[0] * known[1])
            # A first batch is often slow: less counts at once.
            seconds = old + 0.3 * (min(max(seconds, old / 4), 2 * old) - old)
        self._cells[cell] = (items, length, seconds)

    def _set(self, shape: tuple[float, float, float]) -> None:
        self._shape = shape
        factor = math.exp(self._log_factor)
        self.launch_s, self._item_s, self._token_s = (factor * part for part in shape)
        # Where launching is all that takes time, small batches would help nobody.
        self.full_s = max(LONGEST_BATCH_S, 2 * self.launch_s)
        if self._best is not None:
            best, length = self._best
            if not self._rising:
                # Rounding must not make the best batch one item smaller.
                self.full_s = min(self.full_s, (1 + 1e-9) * self.predict(best, length))
            self.most = self._most_ever or 4 * best


class CostModel:
    """The costs of every tower that runs; forgets an encoder with the encoder.

    Args:
        most_items: See `TowerCost`.
        most_ever: See `TowerCost`.
    """

    def __init__(self, most_items: int, most_ever: int = 0) -> None:
        self._most = (most_items, most_ever)
        self._towers: WeakKeyDictionary[Encoder, dict[Tower, TowerCost]] = WeakKeyDictionary()

    def of(self, encoder: Encoder, tower: Tower) -> TowerCost:
        """The cost of a tower, up to date with what was measured of its engine."""
        towers = self._towers.get(encoder)
        if towers is None:
            towers = self._towers[encoder] = {}
        cost = towers.get(tower)
        if cost is None:
            cost = towers[tower] = TowerCost(*self._most)
        cost.calibrate(encoder.figures(tower))
        return cost


EDGES = (1, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
"""Longest item of each length bucket: within one, at most a third is padding beyond 8 tokens."""
_BUCKETS = [next(b for b, edge in enumerate(EDGES) if edge >= n) for n in range(EDGES[-1] + 1)]


def bucket_of(length: float) -> int:
    """The bucket of a length."""
    return _BUCKETS[int(length)] if length < len(_BUCKETS) else len(EDGES)
