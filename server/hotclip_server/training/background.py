"""Threads that compute when nothing else wants the processor, but always get a share of it.

Only workers that run no Python may be put into the idle class, or a process of its own: a thread
that was pushed aside while it holds the interpreter lock would hold up the event loop.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Self

NICE = 10
"""Where a thread could not leave the idle class again: a tenth of the weight of others, which is
the floor (sched-nice-design.rst)."""
_CAP_SYS_NICE = 23
FLOOR = 0.1
"""Share of one processor that each of the threads gets at least, on average."""
WINDOW_S = 2.0
"""Over which the share is looked at."""


TICK_S = 0.25


class Background:
    """Keeps threads in the idle class, except while they fall short of their share.

    Where they could not leave that class again, which takes a right, their weight is low instead.
    Where the system has no idle class nothing is done.

    Args:
        threads: Their ids now; those that begin later take the class of whoever begins them.
    """

    def __init__(
        self,
        threads: Callable[[], Collection[int]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threads = threads
        self._clock = clock
        self.idle = False
        """Whether they are in the idle class now."""
        self._seen = (clock(), 0.0, 0)
        self._set_class(idle=True)

    def tick(self) -> None:
        """Looks whether they had their share; call it a few times a second."""
        began, used, _ = self._seen
        passed = self._clock() - began
        if passed < WINDOW_S / (1 if self.idle else 8):
            return
        ids = self._threads()
        now = sum(_cpu_seconds(thread) for thread in ids)
        starved = bool(ids) and now - used < FLOOR * passed
        self._seen = (self._clock(), now, len(ids))
        # The kernel gives the idle class nothing while others want the processor.
        self._set_class(idle=not starved)

    def release(self) -> None:
        """Back to the usual class."""
        self._set_class(idle=False)

    def _set_class(self, *, idle: bool) -> None:
        if not hasattr(os, "SCHED_IDLE"):
            return
        for thread in self._threads():
            try:
                if not may_leave_idle():
                    os.setpriority(os.PRIO_PROCESS, thread, NICE)  # of one thread, on Linux
                    continue
                wanted = os.SCHED_IDLE if idle else os.SCHED_OTHER
                if os.sched_getscheduler(thread) != wanted:
                    os.sched_setscheduler(thread, wanted, os.sched_param(0))
            except ProcessLookupError:
                continue  # it has ended
        self.idle = idle


def may_leave_idle() -> bool:
    """Whether a thread of this user may change from the idle class to the usual one (sched(7))."""
    limit = resource.getrlimit(resource.RLIMIT_NICE)[0]
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    rights = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return (
        limit == resource.RLIM_INFINITY
        or limit >= 20
        or bool(int(rights.split()[1], 16) >> _CAP_SYS_NICE & 1)
    )


def threads_of(pid: int) -> Sequence[int]:
    """Ids of the threads of a process; none if it is gone or the system has no /proc."""
    try:
        return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    except FileNotFoundError:
        return []


def workers_begun(work: Callable[[], object], mark: str = "hotclip-omp") -> list[int]:
    """Ids of the threads that `work` begins on the calling thread, e.g. those of OpenMP, which
    keeps them for this thread. They take the name of who begins them, so others that begin
    meanwhile are told apart. `work` must begin none that run Python.
    """
    own = Path(f"/proc/self/task/{_own_id()}/comm")
    if not own.exists():
        return []
    name = own.read_text(encoding="utf-8").strip()
    known = set(threads_of(os.getpid()))
    own.write_text(mark, encoding="utf-8")
    try:
        work()
        return [
            thread
            for thread in threads_of(os.getpid())
            if thread not in known and _name(thread) == mark
        ]
    finally:
        own.write_text(name, encoding="utf-8")


def _own_id() -> int:
    return threading.get_native_id()


def _name(thread: int) -> str:
    try:
        return Path(f"/proc/self/task/{thread}/comm").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _cpu_seconds(thread: int) -> float:
    """Time that a thread of any process has run (Documentation/scheduler/sched-stats.rst)."""
    try:
        return int(Path(f"/proc/{thread}/schedstat").read_text(encoding="utf-8").split()[0]) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


class Ticker:
    """Looks after threads from a thread of its own, from `__enter__` to `__exit__`."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hotclip-floor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._background.release()

    def _run(self) -> None:
        while not self._ended.wait(TICK_S):
            self._background.tick()
