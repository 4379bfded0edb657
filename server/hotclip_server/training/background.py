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
"""So much more is a tenth of the weight of others, which is the floor (sched-nice-design.rst)."""
MOST_NICE = 19
_CAP_SYS_NICE = 23
FLOOR = 0.1
"""Share of one processor that all of the threads together get at least, on average."""
WINDOW_S = 2.0
"""How long they may get nothing."""
TICK_S = 0.25


def cpu_seconds(thread: int) -> float:
    """Time that a thread of any process has run (Documentation/scheduler/sched-stats.rst)."""
    try:
        return int(Path(f"/proc/{thread}/schedstat").read_text(encoding="utf-8").split()[0]) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


class Background:
    """Keeps threads in the idle class, except while they make up for a share they did not get.

    Where they could not leave that class again, which takes a right, their weight is low instead.
    Where the system has no idle class nothing is done.

    Args:
        threads: Their ids now; those that begin later take the class of whoever begins them.
        lowly: Whether their weight is low outside of that class too, until they are released: for
            threads that nobody else uses.
    """

    def __init__(
        self,
        threads: Callable[[], Collection[int]],
        *,
        lowly: bool = False,
        clock: Callable[[], float] = time.monotonic,
        used_s: Callable[[int], float] = cpu_seconds,
    ) -> None:
        self._threads = threads
        self._lowly = lowly
        self._clock = clock
        self._used_s = used_s
        self.idle = False
        """Whether they are in the idle class now."""
        self._seen_at = clock()
        self._seen = self._used()
        self._owed_s = 0.0
        self._set_class(idle=True)

    def tick(self) -> None:
        """Looks whether they had their share; call it a few times a second."""
        passed = self._clock() - self._seen_at
        if passed < TICK_S:
            return
        before, self._seen = self._seen, self._used()
        self._seen_at += passed
        had = sum(max(0.0, used - before.get(id_, 0.0)) for id_, used in self._seen.items())
        most = FLOOR * WINDOW_S
        self._owed_s = min(most, max(0.0, self._owed_s + FLOOR * passed - had))
        # The kernel gives the idle class nothing while others want the processor.
        starved = self._owed_s >= most if self.idle else self._owed_s > 0
        self._set_class(idle=not starved)

    def release(self) -> None:
        """Back to the usual class, and to this process' weight, where there is a right to it."""
        self._lowly = False
        self._set_class(idle=False)

    def _used(self) -> dict[int, float]:
        return {thread: self._used_s(thread) for thread in self._threads()}

    def _set_class(self, *, idle: bool) -> None:
        if not hasattr(os, "SCHED_IDLE"):
            return
        may_leave = may_leave_idle()
        own = os.getpriority(os.PRIO_PROCESS, 0)
        low = min(MOST_NICE, NICE + own)
        for thread in self._threads():
            try:
                # Of one thread, on Linux.
                os.setpriority(
                    os.PRIO_PROCESS, thread, low if self._lowly or not may_leave else own
                )
                if not may_leave:
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
