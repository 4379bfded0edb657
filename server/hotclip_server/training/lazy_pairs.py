"""Pairs that are made when they are asked for, of pairs that lie somewhere else."""

from __future__ import annotations

import threading
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar, overload

from hotclip_server.training.flat import Numbers
from hotclip_server.training.pairs import Pair

T = TypeVar("T")

PIECE = 64
"""Rows between two pauses: a millisecond or two."""


def in_pieces(rows: Iterable[T], pause: Callable[[], None]) -> Iterator[T]:
    """The rows, with a pause after every `PIECE` of them."""
    for number, row in enumerate(rows, 1):
        yield row
        if number % PIECE == 0:
            pause()


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


class Paused(LazyPairs):
    """Another sequence. Who makes this one has a pause after every `PIECE` reads; other threads,
    such as those that decode images ahead, have none: a job gives way on its own thread."""

    def __init__(self, source: Sequence[Pair], pause: Callable[[], None]) -> None:
        self._source, self._pause = source, pause
        self._thread = threading.get_ident()
        self._reads = 0

    def __len__(self) -> int:
        return len(self._source)

    def read(self, number: int) -> Pair:
        """See `LazyPairs`; raises what the pause does."""
        if threading.get_ident() == self._thread:
            self._reads += 1
            if self._reads % PIECE == 0:
                self._pause()
        return self._source[number]
