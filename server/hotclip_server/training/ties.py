"""A ranking in which items may share a score: what it is worth on average.

Items of equal score are a tie, and all orders of a tie are equally likely. Numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


class TiedRanking:
    """The candidates of one query, tie by tie, the best tie first.

    Args:
        sizes: [ties] items, at least 1 each.
        hits: [ties] relevant items among them.
        gains: [ties] sum of the gains of the items.
    """

    def __init__(self, sizes: Counts, hits: Counts, gains: Array) -> None:
        self._sizes, self._hits, self._gains = sizes, hits, gains
        self.items = int(sizes.sum())
        self.relevant = int(hits.sum())
        self.chances: Array = np.repeat(hits / sizes, sizes)
        """[items]: of the item at each rank, the chance that it is relevant."""
        self.gains: Array = np.repeat(gains / sizes, sizes)
        """[items]: expected gain of the item at each rank."""

    @classmethod
    def of(cls, scores: NDArray[np.floating], gains: NDArray[np.generic]) -> TiedRanking:
        """By score, higher is better; an item with a gain above 0 is relevant. [n] each."""
        order = np.argsort(-scores.astype(np.float64), kind="stable")
        ordered, worth = scores[order], gains[order].astype(np.float64)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1])
        sizes = np.diff(np.concatenate([starts, [len(ordered)]])).astype(np.int64)
        hits = np.add.reduceat((worth > 0).astype(np.int64), starts)
        return cls(sizes, hits, np.add.reduceat(worth, starts))

    def precision_sums(self) -> Array:
        """[items]: expectation of rel(i) · precision@i at each rank i."""
        sizes, hits = self._sizes, self._hits
        before: Counts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        above: Array = np.repeat(np.cumsum(hits) - hits, sizes).astype(np.float64)
        rank = np.arange(1, self.items + 1, dtype=np.float64)
        # Given that this item is relevant, the others of the tie share its other hits.
        others = np.repeat((hits - 1) / np.maximum(sizes - 1, 1), sizes) * (rank - before - 1)
        sums: Array = self.chances * (above + 1 + others) / rank
        return sums

    def hit(self, k: int) -> float:
        """Chance of a relevant item among the first k: hypergeometric within one tie."""
        first = self._first()
        if first is None:
            return 0.0
        start, size, relevant = first
        drawn = min(max(k - start, 0), size)
        return 1 - comb(size - relevant, drawn) / comb(size, drawn)

    def reciprocal_rank(self) -> float:
        """Expectation over where the first of r relevant among m tied items comes to stand."""
        first = self._first()
        if first is None:
            return 0.0
        start, size, relevant = first
        inside = np.arange(size - relevant + 1, dtype=np.float64)  # tied items before it
        falls = (size - relevant - inside[:-1]) / (size - 1 - inside[:-1])
        chances = relevant / size * np.concatenate([[1.0], np.cumprod(falls)])
        return float((chances / (start + 1 + inside)).sum())

    def first_rank(self) -> float:
        """Expected rank of the first relevant item. Raises ValueError if there is none."""
        first = self._first()
        if first is None:
            raise ValueError("no item is relevant to this query")
        start, size, relevant = first
        return start + (size + 1) / (relevant + 1)

    def cut(self, k: int) -> Iterator[tuple[float, TiedRanking]]:
        """What the first k items may be: each possible list and its chance.

        Lists differ where k divides a tie, by how many of its relevant items they hold. Their
        gains are 1 for every relevant item.
        """
        length = min(k, self.items)
        last = int(np.searchsorted(np.cumsum(self._sizes), length))
        drawn = length - int(self._sizes[:last].sum())
        size, relevant = int(self._sizes[last]), int(self._hits[last])
        sizes = np.append(self._sizes[:last], drawn)
        for found in range(max(0, drawn - (size - relevant)), min(drawn, relevant) + 1):
            ways = comb(relevant, found) * comb(size - relevant, drawn - found)
            hits = np.append(self._hits[:last], found)
            ranking = TiedRanking(sizes, hits, hits.astype(np.float64))
            yield ways / comb(size, drawn), ranking

    def _first(self) -> tuple[int, int, int] | None:
        """Of the first tie with a relevant item: items above it, its items, its hits."""
        places = np.flatnonzero(self._hits)
        if not len(places):
            return None
        place = int(places[0])
        above = int(self._sizes[:place].sum())
        return above, int(self._sizes[place]), int(self._hits[place])
