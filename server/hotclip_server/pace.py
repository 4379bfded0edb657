"""Loading a version beside requests: in pieces of about a millisecond, between their batches.

Reading, hashing and packing the weights of a version takes seconds of processor time. Whole
tensors at a time they would take a core, or all of them, from the batches that are under way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeAlias

Pause: TypeAlias = Callable[[], None]
"""Called between two pieces of work; may wait."""

PIECE_BYTES = 1 << 20
"""Of weights that are read, hashed or copied between two pauses."""
CHECK_S = 0.001
"""Shortest piece, and longest sleep, between two looks at who waits."""
PATIENCE = 19.0
"""Longest pause, over the length of the piece before it."""
LONGEST_PIECE_S = 0.05
"""A longer one was not all work, but time between two loads."""


def never() -> None:
    """Nobody has to be waited for."""


class Pace:
    """A pause that waits while requests wait for the device, but not for ever: however much is
    asked of the server, the work keeps 1 / (1 + PATIENCE) of a core.

    Every thread has its own pieces: any number of them may share it.

    Args:
        clock, sleep: Of seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._pressure_s: Callable[[], float] = lambda: 0.0
        self._own = threading.local()

    def follow(self, pressure_s: Callable[[], float]) -> None:
        """From now on it looks there: predicted seconds of work that waits for the device, above
        0 while anything is not answered; called on any thread."""
        self._pressure_s = pressure_s

    def __call__(self) -> None:
        """Ends a piece and waits for its turn."""
        began = self._clock()
        piece = began - getattr(self._own, "since", began - CHECK_S)
        if piece < CHECK_S:
            return  # small pieces add up first
        until = began + PATIENCE * min(piece, LONGEST_PIECE_S)
        while self._pressure_s() > 0 and (now := self._clock()) < until:
            self._sleep(min(CHECK_S, until - now))
        self._own.since = self._clock()
