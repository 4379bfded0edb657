"""Jobs and their events in the database.

Every function works inside the caller's transaction, so an event and what it tells of are
written together or not at all. The number of an event is taken from `jobs.last_seq`, which
the same transaction raises: numbers have no gaps, whoever writes and whenever it dies.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, Row

from hotclip_proto.v1 import job_pb2
from hotclip_server.errors import AlreadyExists, FailedPrecondition, NotFound
from hotclip_server.jobs.records import JobError, JobKind, JobRecord, NewJob
from hotclip_server.jobs.states import RESUMABLE, WORKING, JobState
from hotclip_server.storage import request_notes
from hotclip_server.storage.database import now
from hotclip_server.storage.schema import job_events, jobs

MOST_INTERRUPTIONS = 3


def create(connection: Connection, new: NewJob) -> tuple[JobRecord, bool]:
    """Queues a job.

    Returns:
        The job, and whether it is new: false if `request_id` had made it before.

    Raises:
        InvalidArgument: `request_id` was used for another request.
        AlreadyExists: the name is taken.
    """
    if new.request_id:
        before = requested(connection, new.kind, new.request_id, new.fingerprint)
        if before is not None:
            return before, False
    job_id = f"job-{secrets.token_hex(8)}"
    name = new.name or job_id
    if connection.execute(
        sa.select(jobs.c.id).where(sa.or_(jobs.c.name == name, jobs.c.id == name))
    ).first():
        raise AlreadyExists(f"a job named {name!r} exists", reason="JOB_NAME_TAKEN")
    time = now()
    connection.execute(
        jobs.insert().values(
            id=job_id,
            name=name,
            kind=new.kind.value,
            state=JobState.QUEUED.value,
            model=new.model,
            description=new.description,
            spec=dict(new.spec),
            create_time=time,
        )
    )
    if new.request_id:
        method = _method(new.kind)
        request_notes.put(connection, method, new.request_id, new.fingerprint, job_id)
    append(connection, job_id, [state_event(JobState.QUEUED, new.message)])
    return get(connection, job_id), True


def requested(
    connection: Connection, kind: JobKind, request_id: str, fingerprint: str
) -> JobRecord | None:
    """The job that `request_id` made, if any; see `request_notes`.

    Raises:
        InvalidArgument: the id was used for another request.
        NotFound: the job was deleted since.
    """
    made = request_notes.find(connection, _method(kind), request_id, fingerprint)
    return None if made is None else get(connection, made)


def _method(kind: JobKind) -> str:
    """Requests of other kinds have ids of their own."""
    return f"job.{kind}"


def get(connection: Connection, job: str) -> JobRecord:
    """By id or name.

    Raises:
        NotFound: there is none.
    """
    row = connection.execute(
        sa.select(jobs).where(sa.or_(jobs.c.id == job, jobs.c.name == job))
    ).first()
    if row is None:
        raise NotFound(f"no job {job!r}", reason="JOB_NOT_FOUND")
    return _record(row)


def list_jobs(
    connection: Connection,
    *,
    limit: int,
    before: tuple[datetime, str] | None = None,
    kind: JobKind | None = None,
) -> list[JobRecord]:
    """Newest first, those older than `before` (creation time, id)."""
    query = sa.select(jobs).order_by(jobs.c.create_time.desc(), jobs.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(sa.tuple_(jobs.c.create_time, jobs.c.id) < sa.tuple_(*before))
    if kind is not None:
        query = query.where(jobs.c.kind == kind.value)
    return [_record(row) for row in connection.execute(query)]


def in_states(connection: Connection, states: Collection[JobState]) -> list[JobRecord]:
    """Oldest first."""
    query = sa.select(jobs).where(jobs.c.state.in_([state.value for state in states]))
    rows = connection.execute(query.order_by(jobs.c.create_time, jobs.c.id))
    return [_record(row) for row in rows]


def append(
    connection: Connection,
    job_id: str,
    events: Sequence[job_pb2.JobEvent],
    *,
    progress: float | None = None,
) -> int:
    """Numbers, dates and stores events; metric events change the job's metrics.

    Returns:
        The number of the last event.

    Raises:
        NotFound: the job was deleted.
    """
    row = connection.execute(
        sa.update(jobs)
        .where(jobs.c.id == job_id)
        .values(last_seq=jobs.c.last_seq + len(events))
        .returning(jobs.c.last_seq, jobs.c.metrics)
    ).first()
    if row is None:
        raise NotFound(f"no job {job_id!r}", reason="JOB_NOT_FOUND")
    changed: dict[str, Any] = {}
    metrics = _metrics(events)
    if metrics:
        changed["metrics"] = {**row.metrics, **metrics}
    if progress is not None:
        changed["progress"] = progress
    if changed:
        connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(changed))
    rows = []
    for seq, event in enumerate(events, start=row.last_seq - len(events) + 1):
        time = now()
        numbered = job_pb2.JobEvent()
        numbered.CopyFrom(event)
        numbered.seq = seq
        numbered.time.FromDatetime(time)
        rows.append(
            {"job_id": job_id, "seq": seq, "time": time, "event": numbered.SerializeToString()}
        )
    if rows:
        connection.execute(job_events.insert(), rows)
    return int(row.last_seq)


def set_state(
    connection: Connection,
    job_id: str,
    state: JobState,
    message: str = "",
    *,
    error: JobError | None = None,
    result_version: str = "",
    activated: bool = False,
    artifacts: Sequence[str] = (),
) -> JobRecord:
    """Changes the state, with its event.

    Raises:
        FailedPrecondition: the present state does not allow it; reason JOB_STATE.
        NotFound: no such job.
    """
    record = get(connection, job_id)
    if not record.state.may_become(state):
        raise FailedPrecondition(
            f"a job that is {record.state} cannot become {state}", reason="JOB_STATE"
        )
    changed: dict[str, Any] = {"state": state.value}
    if state is JobState.PREPARING:
        changed["start_time"] = record.start_time or now()
    elif state is JobState.QUEUED:
        changed.update(end_time=None, error=None, progress=0.0)
    elif state.ended:
        changed["end_time"] = now()
    if state is JobState.SUCCEEDED:
        changed.update(
            progress=1.0,
            result_version=result_version,
            activated=activated,
            artifacts=list(artifacts),
        )
    if error is not None:
        changed["error"] = asdict(error)
    connection.execute(sa.update(jobs).where(jobs.c.id == record.id).values(changed))
    append(connection, record.id, [state_event(state, message)])
    return get(connection, record.id)


def recover(connection: Connection, *, resume: bool) -> list[JobRecord]:
    """What a start of the server does: what ran when it died is INTERRUPTED, or CANCELLED if
    it had been asked to end.

    Args:
        resume: Queue what was interrupted again, but a job that was so three times: it may be
            what ends the server.

    Returns:
        What is queued, oldest first.
    """
    for record in in_states(connection, WORKING):
        cancelled = record.state is JobState.CANCELLING
        state = JobState.CANCELLED if cancelled else JobState.INTERRUPTED
        set_state(connection, record.id, state, "the server stopped while it ran")
    if resume:
        for record in in_states(connection, [JobState.INTERRUPTED]):
            if _interruptions(connection, record.id) < MOST_INTERRUPTIONS:
                requeue(connection, record.id)
    return in_states(connection, [JobState.QUEUED])


def _interruptions(connection: Connection, job_id: str) -> int:
    """How often it was interrupted since it got further: since its last checkpoint at a new
    step."""
    count, furthest = 0, 0
    for event in _events(connection, job_id):
        if event.state.state == job_pb2.JOB_STATE_INTERRUPTED:
            count += 1
        elif event.checkpoint.step > furthest:
            count, furthest = 0, event.checkpoint.step
    return count


def _events(connection: Connection, job_id: str) -> Iterator[job_pb2.JobEvent]:
    query = sa.select(job_events.c.event).where(job_events.c.job_id == job_id)
    for event in connection.execute(query.order_by(job_events.c.seq)).scalars():
        yield job_pb2.JobEvent.FromString(event)


def requeue(connection: Connection, job: str) -> JobRecord:
    """Puts a job that failed, was cancelled or interrupted back into the queue.

    Raises:
        FailedPrecondition: it is in another state; reason JOB_NOT_RESUMABLE.
        NotFound: no such job.
    """
    record = get(connection, job)
    if record.state not in RESUMABLE:
        raise FailedPrecondition(
            f"job {record.name!r} is {record.state}; one that ended well does not resume",
            reason="JOB_NOT_RESUMABLE",
        )
    return set_state(connection, record.id, JobState.QUEUED, "resumed")


def delete(connection: Connection, job: str) -> str:
    """Forgets an ended job and its events.

    Returns:
        Its id.

    Raises:
        FailedPrecondition: it has not ended; reason JOB_ACTIVE.
        NotFound: no such job.
    """
    record = get(connection, job)
    if not record.state.ended:
        raise FailedPrecondition(
            f"job {record.name!r} is {record.state}: cancel it first", reason="JOB_ACTIVE"
        )
    connection.execute(sa.delete(job_events).where(job_events.c.job_id == record.id))
    connection.execute(sa.delete(jobs).where(jobs.c.id == record.id))
    return record.id


def events_after(
    connection: Connection, job_id: str, after_seq: int, *, limit: int
) -> list[job_pb2.JobEvent]:
    """The next events, in order."""
    rows = connection.execute(
        sa.select(job_events.c.event)
        .where(job_events.c.job_id == job_id, job_events.c.seq > after_seq)
        .order_by(job_events.c.seq)
        .limit(limit)
    )
    return [job_pb2.JobEvent.FromString(row.event) for row in rows]


def last_event_time(connection: Connection, job_id: str) -> datetime:
    """When the newest event was written."""
    query = sa.select(sa.func.max(job_events.c.time)).where(job_events.c.job_id == job_id)
    return aware(connection.execute(query).scalar_one())


def beat(connection: Connection, job_id: str, silent_s: float) -> bool:
    """Writes a heartbeat if a working job was silent for so long; whether it did."""
    try:
        state = get(connection, job_id).state
    except NotFound:
        return False
    silent = (now() - last_event_time(connection, job_id)).total_seconds()
    if state.ended or state is JobState.QUEUED or silent < silent_s:
        return False
    append(connection, job_id, [job_pb2.JobEvent(heartbeat=job_pb2.HeartbeatEvent())])
    return True


def state_event(state: JobState, message: str = "") -> job_pb2.JobEvent:
    """An event that tells of a state."""
    value = job_pb2.JobState.Value(f"JOB_STATE_{state.value}")
    return job_pb2.JobEvent(state=job_pb2.StateEvent(state=value, message=message))


def log_event(message: str, level: str = "INFO") -> job_pb2.JobEvent:
    """An event that is a line for people; `level` is INFO, WARNING or ERROR."""
    clean = "".join(c if c.isprintable() else " " for c in message)
    value = job_pb2.LogEvent.Level.Value(f"LEVEL_{level}")
    return job_pb2.JobEvent(log=job_pb2.LogEvent(level=value, message=clean))


def aware(time: datetime) -> datetime:
    """SQLite forgets the zone; all stored times are UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def timestamp(time: datetime) -> Timestamp:
    """As protobuf has it."""
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def _metrics(events: Sequence[job_pb2.JobEvent]) -> Mapping[str, float]:
    return {
        metric.name: metric.value
        for event in events
        if event.WhichOneof("event") == "metric"
        and event.metric.stage != job_pb2.MetricEvent.STAGE_ALPHA
        for metric in event.metric.metrics
    }


def _record(row: Row[Any]) -> JobRecord:
    return JobRecord(
        id=row.id,
        name=row.name,
        kind=JobKind(row.kind),
        state=JobState(row.state),
        model=row.model,
        description=row.description,
        spec=row.spec,
        create_time=aware(row.create_time),
        start_time=aware(row.start_time) if row.start_time else None,
        end_time=aware(row.end_time) if row.end_time else None,
        progress=row.progress,
        last_seq=row.last_seq,
        error=JobError(**row.error) if row.error else None,
        result_version=row.result_version,
        activated=row.activated,
        metrics=row.metrics,
        artifacts=tuple(row.artifacts),
    )
