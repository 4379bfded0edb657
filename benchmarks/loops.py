"""A loop in one process over batches of one size: prepare, encode, again."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import Item
from benchmarks.timing import smallest_near_best

IN_FLIGHT = 2
"""Batches that a device has at a time."""
PASSES = 3
"""Over all sizes of batches, when the best is looked for."""


class Loop(Protocol):
    """What one turn does."""

    overlap: bool
    """Whether batches overlap, because a device of its own encodes: the next is prepared, and
    handed over, while one is computed."""

    def prepare(self, items: Sequence[Item]) -> Any:
        """Decodes, resizes, tokenises a batch."""

    def submit(self, prepared: Any) -> Callable[[], NDArray[np.float32]]:
        """Begins to encode a batch; what it returns gives float32 (n, dim), rows of unit length."""


@dataclass(frozen=True, kw_only=True)
class Looped:
    """What a stretch of a loop gave."""

    rate: float
    """Items a second."""
    rows: dict[int, NDArray[np.float32]]
    """The last vector of each item, by position."""


def run_loop(
    loop: Loop, items: Sequence[Item], batch: int, seconds: float, *, warmed: bool = False
) -> Looped:
    """Runs whole batches for at least so many seconds, after one that is not counted.

    Args:
        items: Taken in turn, at least `batch` of them.
        warmed: Whether such batches ran before, so that the first counts as well; where batches
            overlap it never does, for nothing overlaps its beginning.
    """
    if not 1 <= batch <= len(items):
        raise ValueError(f"batches of {batch} out of {len(items)} items")
    starts = range(0, len(items) - batch + 1, batch)
    rows: dict[int, NDArray[np.float32]] = {}
    count, began = 0, time.perf_counter() if warmed and not loop.overlap else None
    waiting: deque[tuple[int, Callable[[], NDArray[np.float32]]]] = deque()
    for start, prepared in _prepared(loop, items, batch, starts):
        waiting.append((start, loop.submit(prepared)))
        if loop.overlap and len(waiting) < IN_FLIGHT:
            continue
        first, wait = waiting.popleft()
        rows |= dict(enumerate(wait(), first))
        now = time.perf_counter()
        if began is None:
            began = now
            continue
        count += batch
        if now - began >= seconds:
            for first, wait in waiting:
                rows |= dict(enumerate(wait(), first))
            return Looped(rate=count / (now - began), rows=rows)
    raise RuntimeError("batches never end; this is a bug")


def best_batch(
    loop: Loop, items: Sequence[Item], candidates: Sequence[int], seconds: float, limit: float
) -> dict[str, Any]:
    """The batch with the best rate, and the smallest one at 95 % of it with its seconds.

    Passes go over all sizes and each size counts with its best one: what disturbs one moment
    must not pick the size.

    Args:
        candidates: Sizes; those of more items than there are stay untried.
        seconds: Of a size in one pass, at least; a batch is never cut.
        limit: Seconds for everything. Sizes that do not fit in stay untried, the largest first;
            the smallest is always tried.
    """
    rates: dict[int, float] = {}
    planned, rate = 0.0, 0.0
    for size in sorted(size for size in candidates if size <= len(items)):
        if rates and planned + _seconds_of_passes(size, rate, seconds) > limit:
            break
        rates[size] = rate = run_loop(loop, items, size, seconds).rate
        planned += _seconds_of_passes(size, rate, seconds)
    for _ in range(PASSES - 1):
        for size, known in rates.items():
            rates[size] = max(known, run_loop(loop, items, size, seconds, warmed=True).rate)
    best, cap = max(rates, key=lambda size: rates[size]), smallest_near_best(rates)
    return {"batch": best, "rate": rates[best], "cap": cap, "cap_s": cap / rates[cap]}


def _seconds_of_passes(size: int, rate: float, seconds: float) -> float:
    """That all passes over one size take at so many items a second, with the uncounted batch."""
    batch_s = size / rate
    return batch_s + PASSES * max(seconds, batch_s)


def _prepared(
    loop: Loop, items: Sequence[Item], batch: int, starts: range
) -> Iterator[tuple[int, Any]]:
    """Batches without end, each with the position of its first item."""
    if not loop.overlap:
        while True:
            for start in starts:
                yield start, loop.prepare(items[start : start + batch])
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(loop.prepare, items[:batch])
        while True:
            for at, start in enumerate(starts):
                prepared = following.result()
                after = starts[(at + 1) % len(starts)]
                following = ahead.submit(loop.prepare, items[after : after + batch])
                yield start, prepared
