"""Moments in which no request waits for the device: for probes of a new version and for flips."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hotclip_server.batching.backlog import RUNNING_S
from hotclip_server.encoding.protocol import Encoder, Prepared, Tower
from hotclip_server.models.probes import RunOnDevice

PATIENCE = 9.0
"""Longest wait before a probe, over the time of the one before it, with that of the batch that it
had to wait for..."""
MOST_S = 1.0
"""...and in any case."""
FIRST_S = 0.2
"""Longest wait before the first."""
CHECK_S = 0.002
SAMPLED = 1 / math.e


async def quiet_moment(pressure_s: Callable[[], float], most_s: float) -> None:
    """Waits until nothing waits for the device and nothing runs, at most so many seconds. Event
    loop only."""
    loop = asyncio.get_running_loop()
    until = loop.time() + most_s
    while pressure_s() > 0 and loop.time() < until:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(CHECK_S)


async def quietest_moment(pressure_s: Callable[[], float], most_s: float) -> None:
    """Waits until nothing waits for the device, at most so many seconds; something may run. Event
    loop only.

    Where there is no such moment, with two towers whose items wait for each other's batches, the
    next best: after SAMPLED of the time the first in which no more waits than ever did till then
    (the rule for who sees each candidate once: Gilbert and Mosteller 1966).
    """
    loop = asyncio.get_running_loop()
    began, least_s = loop.time(), math.inf
    while (waits_s := pressure_s()) > RUNNING_S:
        passed_s = loop.time() - began
        if passed_s >= most_s or (passed_s >= SAMPLED * most_s and waits_s <= least_s):
            return
        if passed_s < SAMPLED * most_s:
            least_s = min(least_s, waits_s)
        await asyncio.sleep(CHECK_S)


class QuietMoments:
    """Runs batches of one version that is checked; implements `RunOnDevice`. Event loop only.

    A probe can't be interrupted: who comes while it runs waits for it. So it does not begin
    beside a request that waits already, which would wait for it too.

    Args:
        run: Runs a batch in its turn on the device.
        pressure_s: Predicted seconds of what waits; above 0 while anything is not answered.
    """

    def __init__(self, run: RunOnDevice, pressure_s: Callable[[], float]) -> None:
        self._run, self._pressure_s = run, pressure_s
        self._patience_s = FIRST_S

    async def __call__(
        self, encoder: Encoder, tower: Tower, batch: Sequence[Prepared]
    ) -> NDArray[np.float32]:
        """Shape (len(batch), dim)."""
        await quiet_moment(self._pressure_s, self._patience_s)
        loop = asyncio.get_running_loop()
        began = loop.time()
        rows = await self._run(encoder, tower, batch)
        self._patience_s = min(MOST_S, PATIENCE * (loop.time() - began))
        return rows
