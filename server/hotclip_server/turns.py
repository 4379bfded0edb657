"""Who goes next onto a pool of threads: the more urgent class, and no class starves."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from hotclip_server.batching.ticket import Priority

LESS_URGENT_EVERY = 8
"""While both classes wait, every so manyth turn goes to the less urgent one."""
SHORT_S = 0.02
"""A task that is predicted to take no longer may wait within the pool: decoding a photograph of a
megapixel, but not one of twelve."""


class _Waiting(NamedTuple):
    turn: asyncio.Future[None]
    short: bool


class Turns:
    """Lets tasks onto a pool, whose own line knows no classes: so only short ones stand there,
    one a thread, lest a thread be idle between two of them; others wait here. Event loop only.

    Args:
        threads: Of the pool.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._taken = 0
        self._lines: tuple[deque[_Waiting], ...] = tuple(deque() for _ in Priority)
        self._passed_over = 0

    async def take(self, priority: Priority, *, short: bool) -> None:
        """Waits for its turn; `give_back` must follow when the task has ended."""
        line = self._lines[priority]
        if self._room(short) and not any(self._lines[: priority + 1]) and not self._less_urgent():
            self._count(line)
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(_Waiting(turn, short))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the same turn of the loop
                self.give_back()
            raise

    def give_back(self) -> None:
        """A task has ended; lets those in who are next."""
        self._taken -= 1
        while (line := self._next_line()) is not None:
            waiting = line[0]
            if waiting.turn.done():  # who waited has gone away
                line.popleft()
                continue
            if not self._room(waiting.short):
                return
            line.popleft()
            self._count(line)
            self._taken += 1
            waiting.turn.set_result(None)

    def _room(self, short: bool) -> bool:
        return self._taken < (2 * self._threads if short else self._threads)

    def _next_line(self) -> deque[_Waiting] | None:
        lines = [line for line in self._lines if line]
        if not lines:
            return None
        return lines[-1] if self._less_urgent() else lines[0]

    def _less_urgent(self) -> bool:
        """Whether it is the turn of the less urgent class."""
        return self._passed_over + 1 >= LESS_URGENT_EVERY and bool(self._lines[-1])

    def _count(self, served: deque[_Waiting]) -> None:
        waits = any(line for line in self._lines if line is not served)
        urgent = served is self._lines[0]
        self._passed_over = self._passed_over + 1 if urgent and waits else 0
