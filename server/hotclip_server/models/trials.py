"""Measuring engines on the device between the batches of requests, in small pieces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hotclip_server.batching.cost import LONGEST_BATCH_S
from hotclip_server.encoding.engines.protocol import Engine, EngineFigures, OverlappingEngine

T = TypeVar("T")

PIECE_S = 0.01
"""Seconds of the device that probes take at a time, where one item does not take longer."""
LARGEST_PROBE_BATCH = 16
BUDGET_S = 2.5
"""Seconds of the device after which no further round of the figures of a tower begins."""
MOST_ROUNDS = 8
OTHER_SIZES = (1, 8)
"""Items of the batches that are timed at lengths other than the typical one."""
SHARE = 0.25
"""Part of the device that measuring takes while requests wait."""
ENOUGH = 0.95
"""Part of the best throughput that is worth no larger batch."""
LEAST_RACES, MOST_RACES = 3, 25
"""Rounds of a race."""
RACES_S = 0.2
"""Seconds of the device after which no further round begins, once there were enough."""


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
            block, seconds = await self.run(partial(engine.run, batch))
            rows.append(block)
            at += len(batch)
            fitting = int(PIECE_S * len(batch) / max(seconds, 1e-6))
            size = max(1, min(LARGEST_PROBE_BATCH, 2 * size, fitting))
        return np.concatenate(rows)

    async def race(self, engines: Sequence[Engine], items: Sequence[NDArray[Any]]) -> list[float]:
        """Seconds of the same batch on each engine: the best of interleaved rounds, of which
        there are more if they are short and one moment may disturb all of them."""
        best = [float("inf")] * len(engines)
        spent, rounds = 0.0, 0
        while rounds < LEAST_RACES or (rounds < MOST_RACES and spent < RACES_S):
            for number, engine in enumerate(engines):
                seconds = await self._seconds(engine, items)
                best[number] = min(best[number], seconds)
                spent += seconds
            rounds += 1
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
        batches: list[_Batch] = []
        spent = 0.0
        for series in items:
            length = len(series[0]) if series[0].ndim == 1 else 1
            each = 0.0
            for size in _sizes(largest) if series is items[0] else OTHER_SIZES:
                if size * each > LONGEST_BATCH_S or spent + size * each > BUDGET_S:
                    break
                arrays = [series[number % len(series)] for number in range(size)]
                first = await self._seconds(engine, arrays)  # also makes the code of this shape
                seconds = min(first, await self._seconds(engine, arrays))
                batches.append(_Batch(size, length, arrays, seconds))
                each, spent = seconds / size, spent + 2 * seconds
        # What runs beside disturbs one moment, not one size: the rounds go over all of them.
        for _ in range(MOST_ROUNDS):
            if spent > BUDGET_S:
                break
            for batch in batches:
                seconds = await self._seconds(engine, batch.arrays)
                batch.seconds = min(batch.seconds, seconds)
                spent += seconds
        typical = [batch for batch in batches if batch.length == batches[0].length]
        fastest = min(batch.each for batch in typical)
        return EngineFigures(
            best_batch=min(batch.size for batch in typical if batch.each * ENOUGH <= fastest),
            seconds=tuple((batch.size, batch.length, batch.seconds) for batch in batches),
            padded=engine.padded,
        )

    async def _seconds(self, engine: Engine, batch: Sequence[NDArray[Any]]) -> float:
        _, seconds = await self.run(partial(engine.run, batch))
        return seconds


@dataclass(slots=True)
class _Batch:
    size: int
    length: int
    arrays: Sequence[NDArray[Any]]
    seconds: float

    @property
    def each(self) -> float:
        return self.seconds / self.size


def _sizes(largest: int) -> list[int]:
    sizes = [1]
    while 2 * sizes[-1] <= largest:
        sizes.append(2 * sizes[-1])
    return sizes
