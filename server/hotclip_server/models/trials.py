"""Measuring engines on the device between the batches of requests, in small pieces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hotclip_server.encoding.engines.protocol import Engine, EngineFigures, OverlappingEngine

T = TypeVar("T")

PIECE_S = 0.01
"""Seconds of the device that probes take at a time, where one item does not take longer."""
LARGEST_PROBE_BATCH = 16
LONGEST_BATCH_S = 0.25
"""No larger batch is measured than one of this many seconds."""
BUDGET_S = 2.0
"""Seconds of the device that the figures of one tower may take."""
SHARE = 0.25
"""Part of the device that measuring takes while requests wait."""
ENOUGH = 0.95
"""Part of the best throughput that is worth no larger batch."""
ROUNDS = 3


class CallOnDevice(Protocol):
    """Runs work on the device thread between two batches; raises what it raises."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


class Pieces:
    """Takes turns with requests.

    Args:
        busy: Whether requests wait.
    """

    def __init__(self, call: CallOnDevice, busy: Callable[[], bool]) -> None:
        self._call, self._busy = call, busy

    async def run(self, work: Callable[[], T]) -> tuple[T, float]:
        """The result of one piece and the seconds that it took on the device."""

        def timed() -> tuple[T, float]:
            started = time.perf_counter()
            return work(), time.perf_counter() - started

        result, seconds = await self._call(timed)
        if self._busy():
            await asyncio.sleep(seconds * (1 / SHARE - 1))
        return result, seconds

    async def warm_up(self, engine: OverlappingEngine) -> None:
        """Makes an engine ready, step by step."""
        steps = engine.warm_up()
        while (pause := (await self.run(lambda: next(steps, None)))[0]) is not None:
            if pause:
                await asyncio.sleep(pause)

    async def rows(self, engine: Engine, items: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Features of all items, float32 (len(items), dim), in batches of several sizes."""
        rows, at, size = [], 0, 1
        while at < len(items):
            batch = items[at : at + size]
            block, seconds = await self.run(lambda batch=batch: engine.run(batch))  # type: ignore[misc]  # mypy can't infer a default
            rows.append(block)
            at += len(batch)
            fitting = int(PIECE_S * len(batch) / max(seconds, 1e-6))
            size = max(1, min(LARGEST_PROBE_BATCH, 2 * size, fitting))
        return np.concatenate(rows)

    async def race(self, engines: Sequence[Engine], items: Sequence[NDArray[Any]]) -> list[float]:
        """Seconds of a batch of the same size on each engine: the best of interleaved rounds."""
        size = len(items)
        best = [float("inf")] * len(engines)
        for _ in range(ROUNDS):
            for number, engine in enumerate(engines):
                _, seconds = await self.run(lambda engine=engine: engine.run(items[:size]))  # type: ignore[misc]  # as above
                best[number] = min(best[number], seconds)
        return best

    async def figures(
        self,
        engine: Engine,
        items: Sequence[Sequence[NDArray[Any]]],
        largest: int,
    ) -> EngineFigures:
        """Seconds of batches of growing size.

        Args:
            items: Of each length, the typical one first; the batches of a size repeat them.
            largest: No more items.
        """
        points: list[tuple[int, int, float]] = []
        spent = [0.0]
        for series in items:
            length = len(series[0]) if series[0].ndim == 1 else 1
            sizes = _sizes(largest) if series is items[0] else [1, 8]
            for size in sizes:
                known = [seconds / n for n, of, seconds in points if of == length]
                expected = size * min(known, default=0.0)
                if expected > LONGEST_BATCH_S or spent[0] + 2 * expected > BUDGET_S:
                    break
                batch = [series[number % len(series)] for number in range(size)]
                points.append((size, length, await self._best_of(engine, batch, spent)))
        typical = [(n, seconds / n) for n, of, seconds in points if of == points[0][1]]
        fastest = min(each for _, each in typical)
        best_batch = min(n for n, each in typical if each * ENOUGH <= fastest)
        return EngineFigures(best_batch=best_batch, seconds=tuple(points), padded=engine.padded)

    async def _best_of(
        self, engine: Engine, batch: Sequence[NDArray[Any]], spent: list[float]
    ) -> float:
        """The best of several, the first of which also warms the shape up."""
        best = float("inf")
        for _ in range(1 + ROUNDS):
            _, seconds = await self.run(lambda: engine.run(batch))
            spent[0] += seconds
            best = min(best, seconds)
            if seconds > PIECE_S and best < float("inf") and spent[0] > BUDGET_S / 2:
                break
        return best


def _sizes(largest: int) -> list[int]:
    sizes = [1]
    while 2 * sizes[-1] <= largest:
        sizes.append(2 * sizes[-1])
    return sizes
