"""Runs jobs, those of a lane one after the other on its thread, and lets callers follow them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import datetime
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from hotclip_proto.v1 import job_pb2
from hotclip_server.errors import (
    FailedPrecondition,
    NotFound,
    OutOfRange,
    Unavailable,
    Unimplemented,
)
from hotclip_server.heap import trim_heap
from hotclip_server.jobs import store
from hotclip_server.jobs.alone import Warn, no_pressure, nobody, nothing
from hotclip_server.jobs.context import (
    Cancelled,
    Interrupted,
    JobContext,
    JobHandler,
    JobResult,
)
from hotclip_server.jobs.failures import job_error
from hotclip_server.jobs.folders import JobFolders
from hotclip_server.jobs.lanes import Lane, LaneQueue, lane_of
from hotclip_server.jobs.records import JobError, JobKind, JobRecord, NewJob
from hotclip_server.jobs.signals import Signals
from hotclip_server.jobs.states import ACTIVE, RESUMABLE, JobState
from hotclip_server.storage.database import Database

logger = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
WATCH_PAGE = 256
"""Events that a watcher holds in memory at once."""
RETRY_S = 1.0
"""Pause before an end that the database refused (disk full) is written again."""


class JobRunner:
    """The queues, their threads and the watchers; methods are for the event loop.

    Args:
        handlers: One for each kind of job.
        pressure_s: Seconds of work that waits for the device; called on the job threads.
        folders: What jobs keep on the disk to go on with, if they do.
        resume: Whether jobs that a stop of the server interrupted go on by themselves.
        heartbeat_s: Longest silence of a working job.
        began: Told of each job that begins to run, also once more; on the job thread.
        left: Called after a job that waited was cancelled, or one that had ended was forgotten.
    """

    def __init__(
        self,
        database: Database,
        handlers: Iterable[JobHandler],
        *,
        pressure_s: Callable[[], float] = no_pressure,
        folders: JobFolders | None = None,
        resume: bool = False,
        heartbeat_s: float = HEARTBEAT_S,
        began: Callable[[JobRecord, Warn], None] = nobody,
        left: Callable[[], Awaitable[None]] = nothing,
    ) -> None:
        self._database = database
        self._handlers = {handler.kind: handler for handler in handlers}
        self._pressure_s = pressure_s
        self._resume = resume
        self._heartbeat_s = heartbeat_s
        self._began = began
        self._left = left
        self._signals = Signals()
        self._folders = folders
        self._stop = threading.Event()
        self._queues = {lane_of(kind): LaneQueue(self._stop) for kind in JobKind}
        self._cancels: dict[str, threading.Event] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: list[threading.Thread] = []
        self._heart: asyncio.Task[None] | None = None
        self._recovered = False

    async def recover(self) -> None:
        """Settles what the last stop or crash left, so that callers see no job as ended that
        is about to go on; `start` does it otherwise."""
        if not self._recovered:
            queued = await self._database.run(partial(store.recover, resume=self._resume))
            for record in queued:
                self._queues[lane_of(record.kind)].put(record.id)
            await self._database.run(self._remove_leftovers)
            self._recovered = True

    async def start(self) -> None:
        """Recovers, then goes on with the queues."""
        self._loop = asyncio.get_running_loop()
        await self.recover()
        for lane in sorted({lane_of(kind) for kind in self._handlers}):
            # A daemon: a job that never comes to a check must not keep the process alive.
            thread = threading.Thread(
                target=self._work, args=[self._queues[lane]], name=f"hotclip-{lane}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        self._heart = asyncio.create_task(self._beat())

    async def stop(self, grace_s: float = 10.0) -> None:
        """Ends the watchers, and interrupts the running jobs at their next check."""
        self._stop.set()
        for queue in self._queues.values():
            queue.wake()
        self._signals.close()
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        ends = time.monotonic() + grace_s
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, ends - time.monotonic()))

    async def requested(self, kind: JobKind, request_id: str, fingerprint: str) -> JobRecord | None:
        """The job that `request_id` made before, if any; errors as `submit`."""
        if not request_id:
            return None
        return await self._database.run(lambda c: store.requested(c, kind, request_id, fingerprint))

    async def submit(self, new: NewJob) -> JobRecord:
        """Queues a job; durable when this returns.

        Raises:
            AlreadyExists: the name is taken.
            InvalidArgument: the request id was used for another request.
            Unimplemented: nothing here runs such jobs.
        """
        if new.kind not in self._handlers:
            raise Unimplemented(f"this server runs no {new.kind} jobs")
        record, is_new = await self._database.run(lambda c: store.create(c, new))
        if is_new:
            self._enqueue(record)
        return record

    async def get(self, job: str) -> JobRecord:
        """By id or name. Raises NotFound."""
        return await self._database.run(lambda c: store.get(c, job))

    async def list(
        self,
        *,
        limit: int,
        before: tuple[datetime, str] | None = None,
        kind: JobKind | None = None,
    ) -> list[JobRecord]:
        """Newest first, those older than `before` (creation time, id)."""
        return await self._database.run(
            lambda c: store.list_jobs(c, limit=limit, before=before, kind=kind)
        )

    async def cancel(self, job: str) -> JobRecord:
        """Asks a job to end; changes nothing if it has ended. Raises NotFound."""

        def ask(connection: Connection) -> JobRecord:
            record = store.get(connection, job)
            if record.state is JobState.QUEUED:
                return store.set_state(connection, record.id, JobState.CANCELLED)
            if record.state.may_become(JobState.CANCELLING):
                return store.set_state(connection, record.id, JobState.CANCELLING)
            return record

        record = await self._database.run(ask)
        cancel = self._cancels.get(record.id)
        if record.state is JobState.CANCELLING and cancel is not None:
            cancel.set()
        self._signals.notify(record.id)
        if record.state is JobState.CANCELLED:
            await self._left()
        return record

    async def resume(self, job: str) -> JobRecord:
        """Queues a job that ended otherwise than well again; it goes on from what it kept.

        Raises:
            NotFound: no such job.
            FailedPrecondition: it is in another state.
        """
        record = await self._database.run(lambda c: store.requeue(c, job))
        self._enqueue(record)
        return record

    async def delete(self, job: str) -> None:
        """Forgets an ended job, and what it kept.

        Raises:
            NotFound: no such job.
            FailedPrecondition: it has not ended.
        """
        deleted = await self._database.run(lambda c: store.delete(c, job))
        if self._folders is not None:
            await asyncio.to_thread(self._folders.forget, deleted)
        await self._left()

    async def watch(self, job: str, after_seq: int = 0) -> AsyncIterator[job_pb2.JobEvent]:
        """Every event after `after_seq`, those to come too; ends when the job has ended.

        Raises:
            NotFound: no such job.
            OutOfRange: the log is not that long.
            Unavailable: the server stops; go on after the last event.
        """
        record = await self.get(job)
        if after_seq > record.last_seq:
            raise OutOfRange.field(
                "after_seq", f"the last event is {record.last_seq}, got {after_seq}"
            )
        seq = after_seq
        with self._signals.listen(record.id) as signal:
            while True:
                signal.clear()  # before reading: what is written later sets it again
                events, ended = await self._database.run(partial(_page, job_id=record.id, seq=seq))
                for event in events:
                    yield event
                    seq = event.seq
                if ended:
                    return
                if self._signals.closed:
                    raise Unavailable("the server stops; watch again", retry_after_s=1.0)
                if not events:
                    await signal.wait()

    def _enqueue(self, record: JobRecord) -> None:
        self._queues[lane_of(record.kind)].put(record.id)
        self._signals.notify(record.id)

    def _remove_leftovers(self, connection: Connection) -> None:
        """What a crash left of jobs that can't go on."""
        if self._folders is not None:
            going_on = store.in_states(connection, ACTIVE | RESUMABLE)
            self._folders.keep_only({record.id for record in going_on})

    async def _beat(self) -> None:
        """Writes a heartbeat when a working job has been silent."""
        while True:
            await asyncio.sleep(self._heartbeat_s / 2)
            for job_id in list(self._cancels):
                try:
                    beat = await self._database.run(
                        partial(store.beat, job_id=job_id, silent_s=self._heartbeat_s)
                    )
                except OperationalError:
                    logger.exception("no heartbeat of job %s could be written", job_id)
                    continue
                if beat:
                    self._signals.notify(job_id)

    def warn(self, job_id: str, message: str) -> None:
        """Adds a warning to the log of a job that has not ended. Any thread. Raises NotFound."""
        with self._database.transaction() as connection:
            if store.get(connection, job_id).state.ended:
                return
            store.append(connection, job_id, [store.log_event(message, "WARNING")])
        self._changed(job_id)

    # Below: the job threads.

    def _work(self, queue: LaneQueue) -> None:
        while (job_id := queue.take()) is not None:
            self._cancels[job_id] = threading.Event()
            try:
                self._run_one(job_id)
            except Exception as error:
                # A fault of the runner itself; the thread must serve the next job.
                logger.exception("job %s broke the runner. This is a bug.", job_id)
                self._give_up(job_id, job_error(error))
            finally:
                del self._cancels[job_id]

    def _begin(self, job_id: str) -> JobRecord | None:
        """Takes the job out of the queue; none if there is nothing to run."""
        while True:
            try:
                with self._database.transaction() as connection:
                    record = store.get(connection, job_id)
                    if record.state is not JobState.QUEUED:
                        return None  # cancelled while it waited
                    store.set_state(connection, job_id, JobState.PREPARING)
                    return record
            except NotFound:
                return None  # cancelled and deleted
            except OperationalError:
                logger.exception("job %s could not be begun", job_id)
                if self._stop.wait(RETRY_S):
                    return None

    def _give_up(self, job_id: str, error: JobError) -> None:
        try:
            self._end(job_id, JobState.FAILED, error.message, JobResult(), error)
        except (NotFound, FailedPrecondition):
            logger.info("job %s had ended before", job_id)
        except Exception:
            # The last resort: this thread must serve the next job, and a restart settles this one.
            logger.exception("job %s keeps its state until the next start", job_id)

    def _run_one(self, job_id: str) -> None:
        record = self._begin(job_id)
        if record is None:
            return
        self._changed(job_id)
        self._began(record, self.warn)
        context = JobContext(
            self._database,
            job_id,
            record.spec,
            cancel=self._cancels[job_id],
            stop=self._stop,
            changed=self._changed,
            pressure_s=self._pressure_s,
        )
        state, message, result, error = self._handle(record, context)
        self._end(job_id, state, message, result, error)
        if self._folders is not None and state not in RESUMABLE:
            self._folders.forget(job_id)
        if lane_of(record.kind) in (Lane.TRAIN, Lane.MEASURE):
            trim_heap()  # What they compute with is large, and nobody needs the like soon.

    def _handle(
        self, record: JobRecord, context: JobContext
    ) -> tuple[JobState, str, JobResult, JobError | None]:
        try:
            result = self._handlers[record.kind].run(context)
            context.flush()
        except Cancelled:
            return JobState.CANCELLED, "", JobResult(), None
        except Interrupted:
            return JobState.INTERRUPTED, "the server stopped", JobResult(), None
        except Exception as error:
            # The border of foreign code: whatever it raises is the job's end, not the thread's.
            if context.stopping:
                logger.info("job %s broke off", record.id, exc_info=error)
                if self._cancels[record.id].is_set():
                    return JobState.CANCELLED, "", JobResult(), None
                return JobState.INTERRUPTED, "the server stopped", JobResult(), None
            logger.info("job %s failed", record.id, exc_info=error)
            failure = job_error(error)
            if failure.reason == "INTERNAL":
                logger.exception("job %s failed unexpectedly", record.id)
            return JobState.FAILED, failure.message, JobResult(), failure
        return JobState.SUCCEEDED, result.message, result, None

    def _end(
        self,
        job_id: str,
        state: JobState,
        message: str,
        result: JobResult,
        error: JobError | None,
    ) -> None:
        while True:
            try:
                with self._database.transaction() as connection:
                    store.set_state(
                        connection,
                        job_id,
                        state,
                        message,
                        error=error,
                        result_version=result.result_version,
                        activated=result.activated,
                        artifacts=result.artifacts,
                    )
                break
            except OperationalError:
                # A full disk must not leave the job RUNNING for ever.
                logger.exception("the end of job %s could not be written", job_id)
                if self._stop.wait(RETRY_S):
                    return
        self._changed(job_id)

    def _changed(self, job_id: str) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._signals.notify, job_id)


def _page(connection: Connection, job_id: str, seq: int) -> tuple[list[job_pb2.JobEvent], bool]:
    """The next events, and whether they are the last ones of an ended job."""
    record = store.get(connection, job_id)
    events = store.events_after(connection, job_id, seq, limit=WATCH_PAGE)
    last = events[-1].seq if events else seq
    return events, record.state.ended and last == record.last_seq
