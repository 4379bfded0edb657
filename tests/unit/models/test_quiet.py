"""Probes of a new version wait for requests, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotclip_server.encoding.protocol import Encoder, Prepared, Tower
from hotclip_server.models import quiet
from hotclip_server.models.quiet import QuietMoments

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
