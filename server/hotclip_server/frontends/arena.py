"""Memory that a front end shares with the device process.

The front end reserves a place for each item and for the rows of each request; the device process
only reads items, writes rows and says when it is done. Items and rows have areas of their own:
an item's place becomes free as soon as it has run, so whoever holds places for rows while it
waits for places for items gets them.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hotclip_server.shared_flag import unnamed_memory

ALIGNMENT = 64
"""Bytes; of every place."""


@dataclass(frozen=True, kw_only=True)
class ArenaSizes:
    """Bytes; the memory is taken when it is first used."""

    items: int = 128 << 20
    rows: int = 32 << 20

    @property
    def total(self) -> int:
        """Of both."""
        return self.items + self.rows


def new_arena(sizes: ArenaSizes) -> int:
    """A file descriptor of the memory; see `unnamed_memory`."""
    return unnamed_memory("hotclip-arena", sizes.total)


def map_arena(descriptor: int, sizes: ArenaSizes) -> mmap.mmap:
    """Maps the memory; unmapped when the last array that looks at it is gone."""
    return mmap.mmap(descriptor, sizes.total)


class Area:
    """Hands out places of an area: first fit; who finds none waits in line. Event loop only.

    Args:
        start: Where it begins, in bytes.
        size: In bytes.
    """

    def __init__(self, start: int, size: int) -> None:
        self.size = size
        self._free = [(start, size)]
        """Start and size of what is free, in order, never adjacent."""
        self._taken: dict[int, int] = {}
        self._line: deque[tuple[int, Callable[[int], None]]] = deque()
        self._serving = False

    @property
    def taken(self) -> int:
        """Places that are not free."""
        return len(self._taken)

    def fits(self, nbytes: int) -> bool:
        """Whether a place of this size can be expected soon."""
        return _rounded(nbytes) <= self.size // 4

    def reserve(self, nbytes: int, then: Callable[[int], None]) -> None:
        """Calls `then` with where a place begins, at once or when there is room and nobody
        waits who came before.

        Raises:
            ValueError: it would never fit.
        """
        size = _rounded(nbytes)
        if size > self.size:
            raise ValueError(f"{nbytes} bytes don't fit into {self.size}")
        if not self._line and (at := self._take(size)) is not None:
            then(at)
        else:
            self._line.append((size, then))

    def release(self, at: int) -> None:
        """Frees a place, then serves those who wait."""
        self._give_back(at, self._taken.pop(at))
        if self._serving:
            return  # Who has gone away releases at once what it gets; thousands may stand in line.
        self._serving = True
        try:
            while self._line and (place := self._take(self._line[0][0])) is not None:
                _, then = self._line.popleft()
                then(place)
        finally:
            self._serving = False

    def _take(self, size: int) -> int | None:
        for index, (start, free) in enumerate(self._free):
            if free >= size:
                if free == size:
                    del self._free[index]
                else:
                    self._free[index] = (start + size, free - size)
                self._taken[start] = size
                return start
        return None

    def _give_back(self, start: int, size: int) -> None:
        index = bisect_left(self._free, (start, 0))
        if index < len(self._free) and self._free[index][0] == start + size:
            size += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == start:
            before, other = self._free.pop(index - 1)
            start, size = before, other + size
        insort(self._free, (start, size))


def _rounded(nbytes: int) -> int:
    return max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
