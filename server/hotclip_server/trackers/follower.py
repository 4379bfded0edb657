"""Reads the log of a job as it grows and tells trackers of it, on threads of their own.

What trackers are told comes from the job's durable log, so they can be as slow as they like: the
job never waits for them, and nothing has to be dropped. What one of them raises ends that one alone
and is told as a warning of the job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from sqlalchemy.exc import OperationalError

from hotclip_proto.v1 import job_pb2
from hotclip_server.errors import NotFound
from hotclip_server.jobs import store
from hotclip_server.jobs.records import JobRecord
from hotclip_server.storage.database import Database
from hotclip_server.trackers.protocol import (
    ALPHA_STEPS,
    Outcome,
    TrackedRun,
    Tracker,
    flattened,
    named,
)

logger = logging.getLogger(__name__)

PAGE = 256
"""Events read at a time."""
PAUSE_S = 1.0
"""Between two looks into the log of a job that works."""

Make = Callable[[str, TrackedRun], Tracker]
Warn = Callable[[str, str], None]
_OUTCOMES: Mapping[str, Outcome] = {
    "SUCCEEDED": "SUCCEEDED",
    "FAILED": "FAILED",
    "CANCELLED": "CANCELLED",
    "INTERRUPTED": "INTERRUPTED",
}


class Followers:
    """A thread for each tracker that a job names, from the job's beginning to its end.

    Args:
        make: Begins a run of a tracker by name; may raise anything.
        pause_s: Between two looks into a log.
    """

    def __init__(self, database: Database, make: Make, *, pause_s: float = PAUSE_S) -> None:
        self._database = database
        self._make = make
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._changing = threading.Lock()  # jobs of several kinds may begin at a time

    def began(self, job: JobRecord, warn: Warn) -> None:
        """A job begins to run, perhaps once more; `warn` adds a line to its log. Job threads."""
        with self._changing:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
        for name in job.spec.get("trackers", ()):
            follower = _Follower(self._database, job, name, warn)
            thread = threading.Thread(
                target=follower.follow,
                args=(self._make, self._stop, self._pause_s),
                name=f"hotclip-{name}",
                daemon=True,  # a tracker that hangs must not keep the process alive
            )
            thread.start()
            with self._changing:
                self._threads.append(thread)

    def stop(self, grace_s: float = 5.0) -> None:
        """After the last job: waits a while for what is still to be told; blocks."""
        self._stop.set()
        ends = time.monotonic() + grace_s
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
            if thread.is_alive():
                logger.warning("%s hangs; what it was not told is in the job's log", thread.name)


class _Follower:
    """One job and one tracker, from the event after `job.last_seq` on."""

    def __init__(self, database: Database, job: JobRecord, name: str, warn: Warn) -> None:
        self._database = database
        self._job = job
        self._name = name
        self._warn = warn
        self._seq = job.last_seq
        self._again: dict[str, int] = {}
        """By stage the step up to which what comes was told before."""

    def follow(self, make: Make, stop: threading.Event, pause_s: float) -> None:
        """To the end of the job."""
        job = self._job
        run = TrackedRun(
            id=job.id,
            name=job.name,
            model=job.model,
            description=job.description,
            settings=flattened(job.spec),
        )
        try:
            tracker = make(self._name, run)
            tracker.close(self._tell_all(tracker, stop, pause_s))
        except Exception as error:
            # The border of foreign code, which may raise anything: it costs this tracker alone.
            logger.warning("tracker %s of job %s failed", self._name, job.id, exc_info=error)
            self._say(
                f"tracker {self._name} ended, the job goes on: {error or type(error).__name__}"
            )

    def _tell_all(self, tracker: Tracker, stop: threading.Event, pause_s: float) -> Outcome:
        while True:
            stopping = stop.is_set()  # before reading: the last event comes before the stop
            events = self._read()
            if events is None:
                return "INTERRUPTED"  # deleted, so it had ended
            for event in events:
                self._seq = event.seq
                if event.HasField("resumed"):
                    self._go_on(tracker, event.resumed.from_step)
                else:
                    self._tell(tracker, event)
                if (outcome := _outcome(event)) is not None:
                    return outcome
            if events:
                continue
            if stopping:
                return "INTERRUPTED"
            stop.wait(pause_s)

    def _tell(self, tracker: Tracker, event: job_pb2.JobEvent) -> None:
        found = _measured(event)
        if found is None:
            return
        stage, step, values = found
        if step <= self._again.get(stage, -1):
            return
        self._again.pop(stage, None)  # a run that goes back by itself takes other steps
        if values:
            tracker.metrics(named(stage, values), step=step, time=event.time.ToNanoseconds() / 1e9)

    def _go_on(self, tracker: Tracker, step: int) -> None:
        """Steps after this one, which the tracker may have been told of, come again."""
        self._again = {}
        if tracker.rewind(step):
            told = self._told_before()
            self._again = {stage: min(step, last) for stage, last in told.items()}

    def _told_before(self) -> dict[str, int]:
        """The last step of each stage in the log as far as it was read."""
        last: dict[str, int] = {}
        seq = 0
        while seq < self._seq:
            with self._database.transaction() as connection:
                events = store.events_after(connection, self._job.id, seq, limit=PAGE)
            for event in events:
                if event.seq < self._seq and (found := _measured(event)) is not None:
                    last[found[0]] = found[1]
            seq = events[-1].seq if events else self._seq
        return last

    def _read(self) -> list[job_pb2.JobEvent] | None:
        """The next events; None if the job is gone."""
        try:
            with self._database.transaction() as connection:
                store.get(connection, self._job.id)
                return store.events_after(connection, self._job.id, self._seq, limit=PAGE)
        except NotFound:
            return None
        except OperationalError as error:
            logger.warning("the log of job %s can't be read now: %s", self._job.id, error)
            return []

    def _say(self, message: str) -> None:
        try:
            self._warn(self._job.id, message)
        except (NotFound, OperationalError) as error:
            logger.warning("job %s could not be told: %s", self._job.id, error)


def _measured(event: job_pb2.JobEvent) -> tuple[str, int, dict[str, float]] | None:
    """Stage, step and values, as trackers are told them, if it is a measurement."""
    if event.WhichOneof("event") != "metric":
        return None
    stage = job_pb2.MetricEvent.Stage.Name(event.metric.stage).removeprefix("STAGE_")
    values = {metric.name: metric.value for metric in event.metric.metrics}
    step = event.metric.step
    if stage == "ALPHA":
        step = round(values.pop("alpha", 0.0) * ALPHA_STEPS)
    return stage, step, values


def _outcome(event: job_pb2.JobEvent) -> Outcome | None:
    """How the job ended, if this is its end."""
    name = job_pb2.JobState.Name(event.state.state).removeprefix("JOB_STATE_")
    return _OUTCOMES.get(name) if event.HasField("state") else None
