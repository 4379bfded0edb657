"""Runs jobs one after the other on a thread of its own, and lets callers follow them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
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
from hotclip_server.jobs import store
from hotclip_server.jobs.context import (
    Cancelled,
    Interrupted,
    JobContext,
    JobHandler,
    JobResult,
)
from hotclip_server.jobs.failures import job_error
from hotclip_server.jobs.records import JobError, JobKind, JobRecord, NewJob
from hotclip_server.jobs.signals import Signals
from hotclip_server.jobs.states import JobState
from hotclip_server.storage.database import Database, now

logger = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
WATCH_PAGE = 256
"""Events that a watcher holds in memory at once."""
RETRY_S = 1.0
"""Pause before an end that the database refused (disk full) is written again."""


Warn = Callable[[str, str], None]
"""Adds a warning to the log of a job that has not ended; any thread."""


def nobody(job: JobRecord, warn: Warn) -> None:
    """Follows no job."""


def never_busy() -> bool:
    """For a server where nothing else wants the device."""
    return False


class JobRunner:
    """The queue, the job thread and the watchers; methods are for the event loop.

    Args:
        handlers: One for each kind of job.
        serving_busy: Whether requests wait for the device; called on the job thread.
        resume: Whether jobs that a stop of the server interrupted go on by themselves.
        heartbeat_s: Longest silence of a working job.
        began: Told of each job that begins to run, also once more; on the job thread.
    """

    def __init__(
        self,
        database: Database,
        handlers: Iterable[JobHandler],
        *,
        serving_busy: Callable[[], bool] = never_busy,
        resume: bool = False,
        heartbeat_s: float = HEARTBEAT_S,
        began: Callable[[JobRecord, Warn], None] = nobody,
    ) -> None:
        self._database = database
        self._handlers = {handler.kind: handler for handler in handlers}
        self._serving_busy = serving_busy
        self._resume = resume
        self._heartbeat_s = heartbeat_s
        self._began = began
        self._signals = Signals()
        self._queue: deque[str] = deque()
        self._queued = threading.Condition()
        self._stop = threading.Event()
        self._cancels: dict[str, threading.Event] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._heart: asyncio.Task[None] | None = None
        self._recovered = False

    async def recover(self) -> None:
        """Settles what the last stop or crash left, so that callers see no job as ended that
        is about to go on; `start` does it otherwise."""
        if not self._recovered:
            queued = await self._database.run(partial(store.recover, resume=self._resume))
            self._queue.extend(record.id for record in queued)
            self._recovered = True

    async def start(self) -> None:
        """Recovers, then goes on with the queue."""
        self._loop = asyncio.get_running_loop()
        await self.recover()
        # A daemon: a job that never comes to a check must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="hotclip-jobs", daemon=True)
        self._thread.start()
        self._heart = asyncio.create_task(self._beat())

    async def stop(self, grace_s: float = 10.0) -> None:
        """Ends the watchers, and interrupts the running job at its next check."""
        self._stop.set()
        with self._queued:
            self._queued.notify()
        self._signals.close()
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, grace_s)

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
            self._enqueue(record.id)
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
        return record

    async def resume(self, job: str) -> JobRecord:
        """Queues a job that failed or was interrupted again; it starts from the beginning.

        Raises:
            NotFound: no such job.
            FailedPrecondition: it is in another state.
        """
        record = await self._database.run(lambda c: store.requeue(c, job))
        self._enqueue(record.id)
        return record

    async def delete(self, job: str) -> None:
        """Forgets an ended job.

        Raises:
            NotFound: no such job.
            FailedPrecondition: it has not ended.
        """
        await self._database.run(lambda c: store.delete(c, job))

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

    def _enqueue(self, job_id: str) -> None:
        with self._queued:
            self._queue.append(job_id)
            self._queued.notify()
        self._signals.notify(job_id)

    async def _beat(self) -> None:
        """Writes a heartbeat when a working job has been silent."""
        while True:
            await asyncio.sleep(self._heartbeat_s / 2)
            for job_id in list(self._cancels):
                try:
                    beat = await self._database.run(partial(self._heartbeat, job_id=job_id))
                except OperationalError:
                    logger.exception("no heartbeat of job %s could be written", job_id)
                    continue
                if beat:
                    self._signals.notify(job_id)

    def _heartbeat(self, connection: Connection, job_id: str) -> bool:
        try:
            state = store.get(connection, job_id).state
        except NotFound:
            return False
        silent = (now() - store.last_event_time(connection, job_id)).total_seconds()
        if state.ended or state is JobState.QUEUED or silent < self._heartbeat_s:
            return False
        beat = job_pb2.JobEvent(heartbeat=job_pb2.HeartbeatEvent())
        store.append(connection, job_id, [beat])
        return True

    def warn(self, job_id: str, message: str) -> None:
        """Adds a warning to the log of a job that has not ended. Any thread. Raises NotFound."""
        with self._database.transaction() as connection:
            if store.get(connection, job_id).state.ended:
                return
            store.append(connection, job_id, [store.log_event(message, "WARNING")])
        self._changed(job_id)

    # Below: the job thread.

    def _work(self) -> None:
        while True:
            with self._queued:
                self._queued.wait_for(lambda: self._queue or self._stop.is_set())
                if self._stop.is_set():
                    return
                job_id = self._queue.popleft()
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
            serving_busy=self._serving_busy,
        )
        state, message, result, error = self._handle(record, context)
        self._end(job_id, state, message, result, error)

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
