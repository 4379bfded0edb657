"""Which jobs wait for each other: those of one lane run one after the other."""

from __future__ import annotations

import threading
from collections import deque
from enum import StrEnum

from hotclip_server.jobs.records import JobKind


class Lane(StrEnum):
    """Has a queue and a thread of its own."""

    TRAIN = "train"
    """One training at a time: it takes all the memory that there is."""
    MEASURE = "measure"
    INDEX = "index"
    FILES = "files"


_LANES = {
    JobKind.FINE_TUNE: Lane.TRAIN,
    JobKind.EVALUATE: Lane.MEASURE,
    JobKind.DRIFT: Lane.MEASURE,
    JobKind.BRIDGE: Lane.MEASURE,
    JobKind.REINDEX: Lane.INDEX,
    JobKind.EXPORT: Lane.FILES,
    JobKind.IMPORT: Lane.FILES,
}


def lane_of(kind: JobKind) -> Lane:
    """The lane of a kind of job."""
    return _LANES[kind]


class LaneQueue:
    """Ids of jobs that wait, in order; thread-safe."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._ids: deque[str] = deque()
        self._changed = threading.Condition()

    def put(self, job_id: str) -> None:
        """At the end."""
        with self._changed:
            self._ids.append(job_id)
            self._changed.notify()

    def take(self) -> str | None:
        """The next one, as soon as there is one; None when `stop` was set and `wake` called."""
        with self._changed:
            self._changed.wait_for(lambda: self._ids or self._stop.is_set())
            return None if self._stop.is_set() else self._ids.popleft()

    def wake(self) -> None:
        """Lets who waits look at `stop`."""
        with self._changed:
            self._changed.notify_all()
