"""Pairs that are made when they are asked for, of pairs that lie somewhere else."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import overload

from hotclip_server.training.flat import Numbers
from hotclip_server.training.pairs import Pair


class LazyPairs(Sequence[Pair]):
    """Every read makes a new pair; nothing of it is kept."""

    @abstractmethod
    def read(self, number: int) -> Pair:
        """The pair at a place from 0 on."""

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        places = range(len(self))[index]
        return self.read(places) if isinstance(places, int) else [self.read(n) for n in places]

    def __iter__(self) -> Iterator[Pair]:
        return map(self.read, range(len(self)))


class Chosen(LazyPairs):
    """Pairs of another sequence by number."""

    def __init__(self, source: Sequence[Pair], numbers: Numbers) -> None:
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, number: int) -> Pair:
        """See `LazyPairs`."""
        return self._source[int(self._numbers[number])]


class Changed(LazyPairs):
    """Another sequence, each pair changed."""

    def __init__(self, source: Sequence[Pair], change: Callable[[Pair], Pair]) -> None:
        self._source, self._change = source, change

    def __len__(self) -> int:
        return len(self._source)

    def read(self, number: int) -> Pair:
        """See `LazyPairs`."""
        return self._change(self._source[number])


class Chained(LazyPairs):
    """One sequence after the other."""

    def __init__(self, *parts: Sequence[Pair]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, number: int) -> Pair:
        """See `LazyPairs`."""
        part = bisect_right(self._ends, number)
        return self._parts[part][number - (self._ends[part - 1] if part else 0)]
