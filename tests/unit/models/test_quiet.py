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
    looks = 0

    def pressure() -> float:
        nonlocal looks
        looks += 1
        return 1.0

    monkeypatch.setattr(quiet, "FIRST_S", 0.02)
    device = QuietMoments(run, pressure)
    assert await asyncio.wait_for(device(ANY, Tower.TEXT, []), 10) is ROWS
    assert looks > 1
    # The one before it took next to no time, so the next waits no longer than that times PATIENCE.
    looks = 0
    assert await asyncio.wait_for(device(ANY, Tower.TEXT, []), 10) is ROWS
    assert looks >= 1
