"""Notices when work waits and nothing moves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class Watchdog:
    """Reports a stall and its end; `start` starts its task.

    Args:
        stalled_for_s: Seconds for which work has waited with nothing done.
        limit_s: From here on it is a stall.
        on_change: Called with True when work moves again, with False when it stalls.
    """

    def __init__(
        self,
        stalled_for_s: Callable[[], float],
        limit_s: float,
        on_change: Callable[[bool], None],
    ) -> None:
        self._stalled_for_s = stalled_for_s
        self._limit_s = limit_s
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self.healthy = True

    def start(self) -> None:
        """Starts looking, four times a limit and at least once a second."""
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="hotclip-watchdog")

    async def stop(self) -> None:
        """Stops looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def look(self) -> None:
        """Compares once and reports a change."""
        stalled_s = self._stalled_for_s()
        healthy = stalled_s < self._limit_s
        if healthy == self.healthy:
            return
        self.healthy = healthy
        if healthy:
            log.warning("encoding moves again")
        else:
            log.critical("work waits and nothing was encoded for %.1f s", stalled_s)
        self._on_change(healthy)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._limit_s / 4))
            self.look()
