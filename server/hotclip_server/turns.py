"""Who goes next onto a pool of threads: the more urgent class, and no class starves."""

from __future__ import annotations

import asyncio
from collections import deque

from hotclip_server.batching.ticket import Priority

LESS_URGENT_EVERY = 8
"""While both classes wait, every so manyth turn goes to the less urgent one."""


class Turns:
    """A limited number of places; who finds none waits in the line of its class. A pool's own
    line knows no classes, so little may stand in it. Event loop only.

    Args:
        places: Taken at a time at most.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._lines: tuple[deque[asyncio.Future[None]], ...] = tuple(deque() for _ in Priority)
        self._passed_over = 0

    async def take(self, priority: Priority) -> None:
        """Waits for a place, which must be given back."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines[priority].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the same turn of the loop
                self.give_back()
            raise

    def give_back(self) -> None:
        """Hands a place to who is next."""
        while (line := self._next_line()) is not None:
            turn = line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _next_line(self) -> deque[asyncio.Future[None]] | None:
        lines = [line for line in self._lines if line]
        if len(lines) < 2:
            return lines[0] if lines else None
        self._passed_over += 1
        if self._passed_over < LESS_URGENT_EVERY:
            return lines[0]
        self._passed_over = 0
        return lines[-1]
