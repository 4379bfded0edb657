"""Measuring engines on the device between the batches of requests, in small pieces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hotclip_server.batching.cost import LONGEST_BATCH_S, Point, fit
from hotclip_server.encoding.engines.protocol import Engine, EngineFigures, OverlappingEngine

T = TypeVar("T")

PIECE_S = 0.01
"""Seconds of the device that probes take at a time, where one item does not take longer."""
LARGEST_PROBE_BATCH = 16
BUDGET_S = 8.0
"""Seconds of the device after which no further round of the figures of a tower begins."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 5
MOST_IN_A_ROW = 4
"""Batches of a size in one round: a moment of noise must not pass for the speed of small ones."""
OTHER_SIZES = (1, 8)
"""Items of the batches that are timed at lengths other than the typical one."""
SHARE = 0.25
"""Part of the device that measuring takes while requests wait."""
ENOUGH = 0.97
"""Part of the best throughput that is worth no larger batch."""
HAND_OVER_S = 0.0005
"""Of every batch, beside what it takes on the device: closing it, two threads that wake up."""
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

        What runs beside makes everything slower for a while, and not only that: the best of a
        few short batches is a lucky moment, which no long batch has. So in each round every size
        is timed for about as long, each time counts as a share of its round, and one line is laid
        through all sizes.

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
                await self._seconds(engine, arrays)  # makes the code of this shape
                seconds = await self._seconds(engine, arrays)
                batches.append(_Batch(size, length, arrays, [seconds]))
                each, spent = seconds / size, spent + 2 * seconds
        longest = max(batch.seconds[0] for batch in batches)
        for batch in batches:
            batch.in_a_row = max(1, min(MOST_IN_A_ROW, round(longest / batch.seconds[0])))
            batch.seconds.clear()
        rounds = 0
        while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and spent < BUDGET_S):
            for batch in batches:
                row = [await self._seconds(engine, batch.arrays) for _ in range(batch.in_a_row)]
                batch.seconds.append(fmean(row))
                spent += sum(row)
            rounds += 1
        shares = _shares(batches)
        round_s = median(sum(batch.seconds[at] for batch in batches) for at in range(rounds))
        points = tuple(
            (batch.size, batch.length, share * round_s)
            for batch, share in zip(batches, shares, strict=True)
        )
        sizes = [batch.size for batch in batches if batch.length == batches[0].length]
        best = best_batch(points, sizes)
        return EngineFigures(best_batch=best, seconds=points, padded=engine.padded)

    async def _seconds(self, engine: Engine, batch: Sequence[NDArray[Any]]) -> float:
        _, seconds = await self.run(partial(engine.run, batch))
        return seconds


@dataclass(slots=True)
class _Batch:
    size: int
    length: int
    arrays: Sequence[NDArray[Any]]
    seconds: list[float]
    """Of one batch, a mean a round."""
    in_a_row: int = 1


def _shares(batches: Sequence[_Batch]) -> list[float]:
    """Of each batch, what part of a round it takes: the median over rounds."""
    rounds = [sum(row) for row in zip(*(batch.seconds for batch in batches), strict=True)]
    return [
        median(own / whole for own, whole in zip(batch.seconds, rounds, strict=True))
        for batch in batches
    ]


def best_batch(seconds: Sequence[Point], sizes: Sequence[int]) -> int:
    """The smallest of these sizes that is worth no larger one, by a fit to all that was measured.

    Args:
        seconds: Those of the typical length first.
    """
    launch_s, item_s, token_s = fit(seconds)
    each_s = item_s + token_s * seconds[0][1]
    rates = {size: size / (launch_s + HAND_OVER_S + size * each_s) for size in sizes}
    return min(size for size, rate in rates.items() if rate >= ENOUGH * max(rates.values()))


def _sizes(largest: int) -> list[int]:
    sizes = [1]
    while 2 * sizes[-1] <= largest:
        sizes.append(2 * sizes[-1])
    return sizes
