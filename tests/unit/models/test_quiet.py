"""Probes of a new version wait for requests, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotclip_server.batching.backlog import RUNNING_S
from hotclip_server.encoding.protocol import Encoder, Prepared, Tower
from hotclip_server.models import quiet
from hotclip_server.models.quiet import QuietMoments, quietest_moment

ROWS = np.ones((2, 3), np.float32)
ANY: Any = None


async def run(_: Encoder, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
    assert (tower, list(batch)) == (Tower.TEXT, [])
    return ROWS


async def test_a_probe_begins_when_nobody_waits() -> None:
    pressure = 1.0
    device = QuietMoments(run, lambda: pressure)
    probe = asyncio.create_task(device(ANY, Tower.TEXT, []))
    await asyncio.sleep(5 * quiet.CHECK_S)
    assert not probe.done()
    pressure = 0.0
    assert await probe is ROWS


async def test_it_begins_at_last_if_somebody_always_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "FIRST_S", 0.02)
    device = QuietMoments(run, lambda: 1.0)
    for _ in range(2):
        assert await asyncio.wait_for(device(ANY, Tower.TEXT, []), 10) is ROWS


async def test_it_waits_in_proportion_to_the_probe_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quiet, "FIRST_S", 0.0)
    took, slept = [0.05, 0.0], 0.0
    loop = asyncio.get_running_loop()
    now = loop.time()

    async def run_for(*_: object) -> NDArray[np.float32]:
        nonlocal now
        now += took.pop(0)
        return ROWS

    async def sleep(seconds: float) -> None:
        nonlocal now, slept
        now += seconds
        slept += seconds

    monkeypatch.setattr(loop, "time", lambda: now)
    monkeypatch.setattr(quiet.asyncio, "sleep", sleep)
    device = QuietMoments(run_for, lambda: 1.0)
    await device(ANY, Tower.TEXT, [])
    assert slept == 0.0
    await device(ANY, Tower.TEXT, [])
    assert slept == pytest.approx(quiet.PATIENCE * 0.05, abs=2 * quiet.CHECK_S)
    took += [100.0, 0.0]
    await device(ANY, Tower.TEXT, [])
    slept = 0.0
    await device(ANY, Tower.TEXT, [])
    assert slept == pytest.approx(quiet.MOST_S, abs=2 * quiet.CHECK_S)


@pytest.mark.parametrize(
    ("pressures", "moment"),
    [
        ([0.1, 0.05, RUNNING_S], 2),  # Nothing waits.
        ([0.1, 0.03, 0.05, 0.1, 0.04, 0.03, 0.01], 5),  # As little as there ever was.
        ([0.1, 0.2, 0.3, 0.05, 0.06, 0.01], 5),
        ([0.01] + 20 * [0.1], 10),  # No such moment comes.
        ([0.1] * 20, 4),  # They are all the same.
    ],
)
async def test_a_flip_takes_the_first_moment_as_quiet_as_those_before(
    monkeypatch: pytest.MonkeyPatch, pressures: list[float], moment: int
) -> None:
    loop = asyncio.get_running_loop()
    looks, most_s = 0, 10 * quiet.CHECK_S

    def pressure_s() -> float:
        nonlocal looks
        looks += 1
        return pressures[looks - 1]

    async def sleep(_: float) -> None:
        """The clock goes on by looks."""

    monkeypatch.setattr(loop, "time", lambda: quiet.CHECK_S * max(0, looks - 1))
    monkeypatch.setattr(quiet.asyncio, "sleep", sleep)
    await quietest_moment(pressure_s, most_s)
    assert looks - 1 == moment
