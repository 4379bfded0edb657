"""When a job works, and when it waits for those whom the server has to answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE = 9.0
"""Longest wait, over the work before it: a job keeps a tenth of the time."""
SAVED_S = 2.0
"""Most waiting that may be saved up, by work while nobody waited."""
CHECK_S = 0.002
"""Between two looks at who waits."""


class Yielding:
    """A job runs in the gaps while there are some, and keeps 1 / (1 + PATIENCE) of the time where
    there are none.

    A second of work is worth PATIENCE seconds of waiting, of which some are saved up: so a job
    that finds gaps waits out a busy moment, however short the piece of work before it was. What it
    waited too long it makes up for. For the threads of the job, one at a time.

    Args:
        waits: Whether anybody waits for the device; called often, on any thread.
        clock, sleep: Of seconds.
    """

    def __init__(
        self,
        waits: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.yielded_s = 0.0
        """Seconds that it waited for others so far."""
        self.waits = waits
        """Whether anybody waits for the device; any thread."""
        self._clock, self._sleep = clock, sleep
        self._work_clock = clock
        self._since = self._worked = clock()
        self._patience_s = 0.0

    def count_processor_time(self, clock: Callable[[], float] | None = None) -> None:
        """From now on work is what the threads compute that call this. Where others push them
        aside, or a thread for which they wait, that is a wait as well."""
        self._work_clock = clock or ProcessorTime()
        self._worked = self._work_clock()

    def __call__(self, look: Callable[[], object]) -> None:
        """Ends a piece of work and waits for its turn; meanwhile calls `look`, which may raise."""
        began = self._clock()
        passed, worked = began - self._since, self._work_clock()
        work = min(passed, worked - self._worked)
        self._since, self._worked = began, worked
        saved = self._patience_s + PATIENCE * work - (passed - work)
        self._patience_s = max(-SAVED_S, min(saved, max(SAVED_S, PATIENCE * work)))
        while self._patience_s > 0 and self.waits():
            look()
            self._sleep(min(CHECK_S, self._patience_s))
            now = self._clock()
            self._patience_s -= now - self._since
            self.yielded_s += now - self._since
            self._since = now
        self._worked = self._work_clock()


class ProcessorTime:
    """A clock of the seconds that the threads which ask have computed, each since it asked first;
    of one thread at a time."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._own = threading.local()

    def __call__(self) -> float:
        now = time.thread_time()
        self._seconds += now - getattr(self._own, "seen", now)
        self._own.seen = now
        return self._seconds
