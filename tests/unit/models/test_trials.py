"""Measuring leaves the device to requests between its pieces."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from hotclip_server.encoding.engines.protocol import EngineChoice
from hotclip_server.encoding.protocol import Tower
from hotclip_server.models import trials
from hotclip_server.models.trials import Pieces

from .engine_fakes import FakeEngine, FakeHost

T = TypeVar("T")


async def inline(work: Callable[[], T]) -> T:
    return work()


def engine(item_s: float) -> FakeEngine:
    return FakeEngine(EngineChoice("torch", "fp32"), FakeHost(), Tower.TEXT, item_s, 0.0)


ITEMS = [np.array([number, number + 1]) for number in range(64)]


async def test_probes_run_in_small_pieces_and_come_back_in_order() -> None:
    slow, fast = engine(0.006), engine(0.0)
    pieces = Pieces(inline, lambda: False)
    await pieces.rows(slow, ITEMS[:8])
    assert max(slow.sizes) <= 2  # an item takes more than half of a piece
    rows = await pieces.rows(fast, ITEMS)
    assert sum(fast.sizes) == 64
    assert max(fast.sizes) <= trials.LARGEST_PROBE_BATCH
    assert len(set(fast.sizes)) > 2
    np.testing.assert_array_equal(rows, engine(0.0).run(ITEMS))


@pytest.mark.alone
async def test_waiting_requests_get_most_of_the_device() -> None:
    started = time.monotonic()
    await Pieces(inline, lambda: True).run(lambda: time.sleep(0.02))
    assert time.monotonic() - started >= 0.02 / trials.SHARE * 0.9


class NoisyClock:
    """Seconds pass while an engine runs, at a pace that changes from moment to moment."""

    def __init__(self, seed: int) -> None:
        self._noise = random.Random(seed)
        self._left_s, self._pace = 0.0, 1.0
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        while seconds > 0:
            if self._left_s <= 0:
                self._left_s = self._noise.uniform(0.02, 0.3)
                self._pace = self._noise.choice([1.0, 1.0, 1.1, 1.3, 1.6])
            part = min(seconds, self._left_s)
            self._left_s -= part
            seconds -= part
            self.now += part * self._pace


async def test_the_best_batch_is_the_smallest_that_is_worth_it(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    class Timed(FakeEngine):
        """Of a batch, and of an item in it, in seconds."""

        launch_s, each_s = 0.0, 0.0

        def run(self, batch):  # type: ignore[no-untyped-def]  # as in the base
            clock.now += self.launch_s + self.each_s * len(batch)
            return np.zeros((len(batch), 4), np.float32)

    clock = NoisyClock(0)
    monkeypatch.setattr(trials, "time", clock)
    timed = Timed(EngineChoice("torch", "fp32"), FakeHost(), Tower.TEXT, 0.0, 0.0)
    timed.each_s = 0.1
    flat = await Pieces(inline, lambda: False).figures(timed, [ITEMS[:2]], 16)
    assert flat.best_batch == 1
    timed.launch_s, timed.each_s = 0.01, 0.002  # 97 % of the throughput of 16 take all 16
    steep = await Pieces(inline, lambda: False).figures(timed, [ITEMS[:2]], 16)
    assert steep.best_batch == 16
    assert [n for n, _, _ in steep.seconds] == [1, 2, 4, 8, 16]
    np.testing.assert_allclose(
        [s for _, _, s in steep.seconds], [0.012, 0.014, 0.018, 0.026, 0.042]
    )


async def test_a_machine_that_is_now_fast_and_now_slow_gets_no_small_batches(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Lucky moments are as short as small batches; those must not win by them."""

    class Timed(FakeEngine):
        """97 % of the best throughput take 16 items; 91 % take 8, 84 % take 4."""

        def run(self, batch):  # type: ignore[no-untyped-def]  # as in the base
            clock.pass_by(0.009 + 0.016 * len(batch))
            return np.zeros((len(batch), 4), np.float32)

    chosen = []
    for seed in range(40):
        clock = NoisyClock(seed)
        monkeypatch.setattr(trials, "time", clock)
        timed = Timed(EngineChoice("torch", "fp32"), FakeHost(), Tower.TEXT, 0.0, 0.0)
        figures = await Pieces(inline, lambda: False).figures(timed, [ITEMS[:2]], 64)
        chosen.append(figures.best_batch)
    assert sum(size < 8 for size in chosen) <= 2, chosen
    assert sum(size > 16 for size in chosen) <= 2, chosen


async def test_no_batch_is_measured_that_is_too_long() -> None:
    slow = engine(0.1)
    figures = await asyncio.wait_for(
        Pieces(inline, lambda: False).figures(slow, [ITEMS[:1]], 64), timeout=20
    )
    assert max(slow.sizes) * 0.1 <= trials.LONGEST_BATCH_S
    assert figures.best_batch <= 4
