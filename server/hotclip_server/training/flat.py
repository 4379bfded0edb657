"""Strings and rows as arrays of numbers: what a set of a million pairs takes in memory. No torch.

Equal values are found by Python's 64-bit hash, which for two different ones of n is the same with
a chance of n² / 2⁶⁵. What comes of it does not depend on the hash: numbers are given in the order
in which values first appear.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int32]
Hashes = NDArray[np.int64]

Number = TypeVar("Number", np.int32, np.float32)

NOTHING = -(2**63)
"""Hash of what is not there."""


def hash_of(value: Hashable) -> int:
    """Within this process; `NOTHING` for None."""
    return NOTHING if value is None else hash(value)


def hashes_of(values: Iterable[Hashable]) -> Hashes:
    """[n]"""
    return np.array(array("q", map(hash_of, values)), dtype=np.int64)


class HashSet:
    """Which values are in a set, by their hashes."""

    def __init__(self, values: Iterable[Hashable]) -> None:
        self.hashes: Hashes = np.unique(hashes_of(values))

    def count_common(self, other: HashSet) -> int:
        """How many values are in both."""
        return len(np.intersect1d(self.hashes, other.hashes, assume_unique=True))

    def __contains__(self, value: Hashable) -> bool:
        wanted = hash_of(value)
        place = int(np.searchsorted(self.hashes, wanted))
        return place < len(self.hashes) and int(self.hashes[place]) == wanted


def numbered(hashes: Hashes) -> tuple[Numbers, Numbers]:
    """[n], the number of each value by first appearance, and [distinct], where each appeared first.

    `NOTHING` has the number -1.
    """
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    ordered = hashes[order]
    begins = np.ones(len(order), dtype=np.bool_)
    begins[1:] = ordered[1:] != ordered[:-1]
    firsts = order[begins]  # the sort is stable: the first of each
    by_appearance = np.argsort(firsts)
    number_of = np.empty(len(firsts), dtype=np.int32)
    number_of[by_appearance] = np.arange(len(firsts), dtype=np.int32)
    firsts = firsts[by_appearance]
    nothing = hashes == NOTHING
    if nothing.any():
        absent = number_of[0]  # the smallest hash
        number_of[number_of > absent] -= 1
        number_of[0] = -1
        firsts = np.delete(firsts, absent)
    numbers = np.empty(len(hashes), dtype=np.int32)
    numbers[order] = number_of[np.cumsum(begins) - 1]
    return numbers, firsts


def slim(values: NDArray[Number]) -> NDArray[Number]:
    """The same values, as one number where they are all the same."""
    if len(values) and (values == values[0]).all():
        return np.broadcast_to(values[0].copy(), values.shape)
    return values


class Members:
    """Places by a number that they share, of [n] numbers from 0 on.

    `order` is [n], the places number by number, rising within each; `starts` is [numbers], where
    those of each begin there.
    """

    def __init__(self, numbers: Numbers) -> None:
        self.order: Numbers = np.argsort(numbers, kind="stable").astype(np.int32)
        counts = np.bincount(numbers)
        self.starts: Numbers = (np.cumsum(counts) - counts).astype(np.int32)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def sizes(self) -> Numbers:
        """[numbers]: how many places share each."""
        return np.diff(self.starts, append=np.int32(len(self.order)))

    @property
    def firsts(self) -> Numbers:
        """[numbers]: the first place of each."""
        return self.order[self.starts]

    def firsts_of(self, numbers: NDArray[np.int64]) -> Numbers:
        """[n]: the first place of some."""
        return self.order[self.starts[numbers]]

    def of(self, number: int) -> Numbers:
        """The places of one, rising."""
        end = self.starts[number + 1] if number + 1 < len(self.starts) else len(self.order)
        return self.order[self.starts[number] : end]


class Lists:
    """A list of numbers for each of n rows, one after the other."""

    def __init__(self, lengths: Numbers, values: Numbers) -> None:
        self._ends = np.cumsum(lengths).astype(np.int32) if len(values) else None
        self._values = values

    def __len__(self) -> int:
        """Numbers of all rows."""
        return len(self._values)

    @property
    def longest(self) -> int:
        """Of a row."""
        return 0 if self._ends is None else int(np.diff(self._ends, prepend=0).max())

    def of(self, row: int) -> Numbers:
        """The list of a row."""
        if self._ends is None:
            return self._values
        start = self._ends[row - 1] if row else 0
        return self._values[start : self._ends[row]]

    def where(self, place: int) -> tuple[int, int]:
        """Row of a place among the numbers of all rows, and place within its list."""
        if self._ends is None:
            raise IndexError(place)
        row = int(np.searchsorted(self._ends, place, side="right"))
        return row, place - int(self._ends[row - 1] if row else 0)
