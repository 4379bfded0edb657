"""Remembers features by content, for as long as the version is in memory and room allows."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from hotclip_server.encoding.protocol import Encoder

OVERHEAD = 320
"""Bytes that an entry takes beside its row: key, array header, links (measured)."""


@dataclass(kw_only=True)
class CacheFigures:
    """Counts since the start."""

    hits: int = 0
    misses: int = 0
    evicted: int = 0


class _Shelf:
    """Rows of one encoder, the least recently used first, with when each was used."""

    def __init__(self) -> None:
        self.rows: OrderedDict[bytes, tuple[int, NDArray[np.float32]]] = OrderedDict()
        self.nbytes = 0


class FeatureCache:
    """Least recently used rows go first. Event loop only, but for `peek`.

    Rows belong to an encoder in memory, and go with it: a version that is loaded again may run
    on another engine, whose rows differ in their last digits. Where an engine is replaced in place,
    the caller's keys tell one from the other.

    Args:
        most_bytes: Of all rows with what it takes to keep them; 0: keeps nothing.
    """

    def __init__(self, most_bytes: int) -> None:
        self.figures = CacheFigures()
        self._most_bytes = most_bytes
        self._shelves: WeakKeyDictionary[Encoder, _Shelf] = WeakKeyDictionary()
        self._uses = 0

    @property
    def enabled(self) -> bool:
        """Whether looking is worth while."""
        return self._most_bytes > 0

    @property
    def nbytes(self) -> int:
        """Bytes that it takes now."""
        return sum(shelf.nbytes for shelf in self._shelves.values())

    def peek(self, encoder: Encoder, key: bytes) -> NDArray[np.float32] | None:
        """The row of a content, float32 (dim,); any thread, changes nothing."""
        shelf = self._shelves.get(encoder)
        found = shelf.rows.get(key) if shelf is not None else None
        return found[1] if found is not None else None

    def used(self, encoder: Encoder, key: bytes) -> None:
        """A row that `peek` gave was used; it may be gone by now."""
        self.figures.hits += 1
        shelf = self._shelves.get(encoder)
        if shelf is not None and (found := shelf.rows.get(key)) is not None:
            self._uses += 1
            shelf.rows[key] = (self._uses, found[1])
            shelf.rows.move_to_end(key)

    def put(self, encoder: Encoder, key: bytes, row: NDArray[np.float32]) -> None:
        """Keeps a copy of a row that had to be computed; drops others to make room."""
        self.figures.misses += 1
        size = row.nbytes + OVERHEAD
        if size > self._most_bytes:
            return
        shelf = self._shelves.get(encoder)
        if shelf is None:
            shelf = self._shelves[encoder] = _Shelf()
        if key in shelf.rows:
            return
        # A row is a view of its batch, which would stay whole as long as the row.
        kept = row.copy()
        kept.flags.writeable = False
        self._uses += 1
        shelf.rows[key] = (self._uses, kept)
        shelf.nbytes += size
        while self.nbytes > self._most_bytes:
            self._evict()

    def _evict(self) -> None:
        shelves = [shelf for shelf in self._shelves.values() if shelf.rows]
        oldest = min(shelves, key=lambda shelf: next(iter(shelf.rows.values()))[0])
        _, (_, row) = oldest.rows.popitem(last=False)
        oldest.nbytes -= row.nbytes + OVERHEAD
        self.figures.evicted += 1
