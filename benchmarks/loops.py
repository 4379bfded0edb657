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


def run_loop(loop: Loop, items: Sequence[Item], batch: int, seconds: float) -> Looped:
    """Runs whole batches for at least so many seconds, after one that is not counted.

    Args:
        items: Taken in turn, at least `batch` of them.
    """
    if not 1 <= batch <= len(items):
        raise ValueError(f"batches of {batch} out of {len(items)} items")
    starts = range(0, len(items) - batch + 1, batch)
    rows: dict[int, NDArray[np.float32]] = {}
    count, began = 0, 0.0
    waiting: deque[tuple[int, Callable[[], NDArray[np.float32]]]] = deque()
    for start, prepared in _prepared(loop, items, batch, starts):
        waiting.append((start, loop.submit(prepared)))
        if loop.overlap and len(waiting) < IN_FLIGHT:
            continue
        first, wait = waiting.popleft()
        rows |= dict(enumerate(wait(), first))
        now = time.perf_counter()
        if not began:
            began = now
            continue
        count += batch
        if now - began >= seconds:
            for first, wait in waiting:
                rows |= dict(enumerate(wait(), first))
            return Looped(rate=count / (now - began), rows=rows)
    raise RuntimeError("batches never end; this is a bug")


def best_batch(
    loop: Loop, items: Sequence[Item], candidates: Sequence[int], seconds: float
) -> dict[str, Any]:
    """The batch with the best rate, and the smallest one at 95 % of it with its seconds."""
    sizes = [size for size in candidates if size <= len(items)]
    rates = {size: run_loop(loop, items, size, seconds).rate for size in sizes}
    best, cap = max(rates, key=lambda size: rates[size]), smallest_near_best(rates)
    return {"batch": best, "rate": rates[best], "cap": cap, "cap_s": cap / rates[cap]}


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
