"""What a job's code sees: its specification, its event log, and when to stop or to wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from hotclip_proto.v1 import job_pb2
from hotclip_server.jobs import store
from hotclip_server.jobs.records import JobKind
from hotclip_server.jobs.states import JobState
from hotclip_server.jobs.yielding import Yielding
from hotclip_server.storage.database import Database

logger = logging.getLogger(__name__)

Level = Literal["INFO", "WARNING", "ERROR"]
Stage = Literal["STEP", "BEFORE", "EPOCH", "AFTER", "ALPHA"]

STEP_EVENT_INTERVAL_S = 0.2
"""Least time between two events of single steps: each one is a write that waits for the disk."""
EVENTS_PAGE = 1024


class Cancelled(Exception):
    """The job was asked to end."""


class Interrupted(Exception):
    """The server stops; the job may be resumed after the restart."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a job ended well."""

    result_version: str = ""
    activated: bool = False
    message: str = ""
    artifacts: Sequence[str] = ()
    """Ids of the files that it made for callers."""


class JobHandler(Protocol):
    """The code of one kind of job."""

    @property
    def kind(self) -> JobKind:
        """What it does."""

    def run(self, job: JobContext) -> JobResult:
        """Does the work; blocks; on the job thread.

        Raises:
            HotclipError: the job fails with its code, reason and message.
            Cancelled, Interrupted: from `job.check_cancelled`; let them pass.
        """


class JobContext:
    """Handed to the handler; all methods are for the job thread alone, `yield_to_serving` also for
    threads that compute for it while it waits for them, one at a time.

    Args:
        job_id: Of the job.
        spec: As it was submitted.
        cancel: Set when the job was asked to end.
        stop: Set when the server stops.
        changed: Called after events are durable.
        pressure_s: Predicted seconds of work that waits for the device; any thread.
    """

    def __init__(
        self,
        database: Database,
        job_id: str,
        spec: Mapping[str, Any],
        *,
        cancel: threading.Event,
        stop: threading.Event,
        changed: Callable[[str], None],
        pressure_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = job_id
        self.spec = spec
        self.yielding = Yielding(lambda: pressure_s() > 0, clock)
        """When it goes on, and when serving does."""
        self.restarts = 0
        """How often the work was begun again within this attempt of the job."""
        self._database = database
        self._cancel = cancel
        self._stop = stop
        self._changed = changed
        self._clock = clock
        self._held_back: tuple[job_pb2.JobEvent, float | None] | None = None
        self._last_step_event = -float("inf")

    def running(self, message: str = "") -> None:
        """The preparation is over, the work begins.

        Raises:
            Cancelled, Interrupted: instead.
        """
        self.check_cancelled()
        with self._database.transaction() as connection:
            # Asked to cancel since the check: the next check tells.
            if store.get(connection, self.id).state is JobState.PREPARING:
                store.set_state(connection, self.id, JobState.RUNNING, message)
        self._changed(self.id)
        self.check_cancelled()

    def check_cancelled(self) -> None:
        """Call it often: at least every second of work.

        Raises:
            Cancelled: the job was asked to end.
            Interrupted: the server stops.
        """
        if self._cancel.is_set():
            raise Cancelled
        if self._stop.is_set():
            raise Interrupted

    @property
    def yielded_s(self) -> float:
        """Seconds spent waiting for serving so far."""
        return self.yielding.yielded_s

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to end."""
        return self._cancel.is_set()

    @property
    def stopping(self) -> bool:
        """Whether the server stops: what fails now may do well after the restart."""
        return self._stop.is_set()

    def log(self, message: str, level: Level = "INFO") -> None:
        """A line for people."""
        self._append(store.log_event(message, level))

    def metric(
        self,
        stage: Stage,
        values: Mapping[str, float],
        *,
        step: int,
        total_steps: int = 0,
        epoch: int = 0,
        progress: float | None = None,
    ) -> None:
        """Numbers measured at a step; `epoch` counts from 0, `progress` is in [0, 1].

        Events of the stage STEP come at most five a second: others are left out, but never
        the last one before an event of another kind.
        """
        event = job_pb2.JobEvent(
            metric=job_pb2.MetricEvent(
                stage=job_pb2.MetricEvent.Stage.Value(f"STAGE_{stage}"),
                step=step,
                total_steps=total_steps,
                epoch=epoch,
            )
        )
        for name, value in values.items():
            event.metric.metrics.add(name=name, value=value)
        if stage == "STEP":
            if self._clock() - self._last_step_event < STEP_EVENT_INTERVAL_S:
                self._held_back = (event, progress)
                return
            self._held_back = None
            self._last_step_event = self._clock()
        self._append(event, progress=progress)

    def checkpoint(self, *, step: int, size_bytes: int, best: bool) -> None:
        """State was saved from which the job can go on."""
        event = job_pb2.CheckpointEvent(step=step, bytes=size_bytes, best=best)
        self._append(job_pb2.JobEvent(checkpoint=event))

    def resumed(self, from_step: int) -> None:
        """The job goes on from a state; steps after it that were told before come again."""
        attempt = attempt_of(self._events(), self.restarts)
        event = job_pb2.ResumedEvent(from_step=from_step, attempt=attempt)
        self._append(job_pb2.JobEvent(resumed=event))

    def example(
        self, query: str, *, before: Sequence[str], after: Sequence[str], relevant: Sequence[str]
    ) -> None:
        """One query with its top results, best first, and what would be right."""
        event = job_pb2.ExampleEvent(query=query, before=before, after=after, relevant=relevant)
        self._append(job_pb2.JobEvent(example=event))

    def progress(self, share: float) -> None:
        """Share of the work done, in [0, 1]; writes no event."""
        with self._database.transaction() as connection:
            store.append(connection, self.id, [], progress=share)

    def yield_to_serving(self) -> None:
        """Waits while requests wait for the device, but not for ever; see `Yielding`."""
        self.yielding(self.check_cancelled)

    def give_way(self) -> None:
        """Call it between pieces of work: it waits while requests wait for the device.

        Raises:
            Cancelled, Interrupted: as `check_cancelled`.
        """
        self.check_cancelled()
        self.yield_to_serving()

    def flush(self) -> None:
        """Writes the step event that was held back, if any."""
        if self._held_back is not None:
            event, progress = self._held_back
            self._held_back = None
            self._write([event], progress)

    def _events(self) -> Iterator[job_pb2.JobEvent]:
        """The log so far, page by page: of a long one it takes a while, and others write too."""
        seq = 0
        while True:
            with self._database.transaction() as connection:
                events = store.events_after(connection, self.id, seq, limit=EVENTS_PAGE)
            yield from events
            if not events:
                return
            seq = events[-1].seq

    def _append(self, event: job_pb2.JobEvent, *, progress: float | None = None) -> None:
        held_back, self._held_back = self._held_back, None
        if held_back is None:
            self._write([event], progress)
        else:
            self._write([held_back[0], event], held_back[1] if progress is None else progress)

    def _write(self, events: Sequence[job_pb2.JobEvent], progress: float | None) -> None:
        with self._database.transaction() as connection:
            store.append(connection, self.id, events, progress=progress)
        self._changed(self.id)


def attempt_of(events: Iterable[job_pb2.JobEvent], restarts: int) -> int:
    """Number of the attempt that goes on now, from 1: more than of any that was told before.

    Args:
        events: Of the job so far.
        restarts: How often the work was begun again since the job was begun.
    """
    begun = told = 0
    for event in events:
        begun += event.state.state == job_pb2.JOB_STATE_PREPARING
        told = max(told, event.resumed.attempt)
    return max(begun + restarts, told + 1)
