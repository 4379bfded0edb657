"""Jobs and their events, as the caller sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeAlias

from google.protobuf import timestamp_pb2
from google.protobuf.json_format import MessageToDict

from hotclip._status import status_code
from hotclip.errors import HotclipError, JobFailed
from hotclip_proto.v1 import job_pb2


class JobState(StrEnum):
    """Where a job stands; its value is its name."""

    UNKNOWN = "UNKNOWN"
    QUEUED = "QUEUED"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    INTERRUPTED = "INTERRUPTED"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless somebody resumes the job."""
        return self in _ENDED


_ENDED = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED}


class JobKind(StrEnum):
    """What a job does; its value is its name."""

    UNKNOWN = "UNKNOWN"
    FINE_TUNE = "FINE_TUNE"
    EVALUATE = "EVALUATE"
    REINDEX = "REINDEX"
    EXPORT = "EXPORT"
    IMPORT = "IMPORT"
    DRIFT = "DRIFT"
    BRIDGE = "BRIDGE"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A durable operation at one moment."""

    id: str
    name: str
    kind: JobKind
    state: JobState
    model: str
    description: str
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    progress: float
    """Share of the work done, in [0, 1]."""
    last_seq: int
    """Number of the last event."""
    error: HotclipError | None
    """Set when FAILED."""
    result_version: str
    """Version made by a fine-tune or import; empty before."""
    activated: bool
    """Whether the job put result_version live."""
    metrics: Mapping[str, float]
    """Last value of each metric."""
    artifacts: tuple[str, ...]
    """Ids of the files that it made; see Client.download_artifact."""
    advice: str = ""
    """In the answer to finetune alone: what could be asked for instead; empty: nothing."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What it was told, with defaults filled in and names resolved to ids; numbers are floats. What
    the model decides when a run begins is None (learning_rate) or "auto" (loss, precision) if
    nobody gave it: the log says what that came to. Without the texts of a comparison or a
    bridge; empty in list_jobs."""

    def ended_well(self) -> Job:
        """Itself, if it SUCCEEDED; raises JobFailed otherwise."""
        if self.state is not JobState.SUCCEEDED:
            raise JobFailed(self)
        return self


@dataclass(frozen=True)
class StateChange:
    """The job is in another state; `message` says why, or is empty."""

    state: JobState
    message: str


@dataclass(frozen=True)
class LogLine:
    """A line for people; level is INFO, WARNING or ERROR."""

    time: datetime | None
    level: str
    message: str

    def __str__(self) -> str:
        clock = f"{self.time:%H:%M:%S} " if self.time else ""
        return f"{clock}{self.level} {self.message}"


@dataclass(frozen=True)
class Measurement:
    """Numbers measured at a step.

    `stage` is STEP (one optimizer step), BEFORE, EPOCH or AFTER (held-out data), or ALPHA:
    held-out data with weights between the base (metric "alpha" 0) and the trained ones (1);
    `total_steps` is 0 when unknown; `epoch` counts from 0.
    """

    stage: str
    step: int
    total_steps: int
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Checkpoint:
    """State was saved from which the job can go on; `best` by the monitored metric."""

    step: int
    bytes: int
    best: bool


@dataclass(frozen=True)
class Example:
    """One query, what it found before and after training, and what would be right."""

    query: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    relevant: tuple[str, ...]


@dataclass(frozen=True)
class Heartbeat:
    """Nothing happened for a while, the job lives."""


@dataclass(frozen=True)
class Resumed:
    """The job goes on from a checkpoint; steps after from_step come again, the same as before."""

    from_step: int
    attempt: int
    """From 1; this is the attempt that begins here."""


EventDetail: TypeAlias = (
    StateChange | LogLine | Measurement | Checkpoint | Example | Heartbeat | Resumed
)


@dataclass(frozen=True)
class JobEvent:
    """One numbered event; numbers start at 1 and have no gaps within a job."""

    seq: int
    time: datetime | None
    detail: EventDetail


def when(stamp: timestamp_pb2.Timestamp) -> datetime | None:
    """The time of a stamp, in UTC; None if it was never set."""
    return stamp.ToDatetime(tzinfo=UTC) if stamp.seconds or stamp.nanos else None


def job_state(state: job_pb2.JobState.ValueType) -> JobState:
    """The state by its name on the wire; UNKNOWN for one that this client has not heard of."""
    name = _name(job_pb2.JobState.Name, state, "JOB_STATE_")
    return JobState(name) if name in JobState.__members__ else JobState.UNKNOWN


def job(message: job_pb2.Job) -> Job:
    """Parses a job."""
    kind = _name(job_pb2.JobKind.Name, message.kind, "JOB_KIND_")
    error = None
    if message.HasField("error"):
        told = message.error
        error = HotclipError(told.message, reason=told.reason or status_code(told.code).name)
    return Job(
        id=message.id,
        name=message.name or message.id,
        kind=JobKind(kind) if kind in JobKind.__members__ else JobKind.UNKNOWN,
        state=job_state(message.state),
        model=message.model,
        description=message.description,
        create_time=when(message.create_time),
        start_time=when(message.start_time),
        end_time=when(message.end_time),
        progress=message.progress,
        last_seq=message.last_seq,
        error=error,
        result_version=message.result_version,
        activated=message.activated,
        metrics={m.name: m.value for m in message.metrics},
        artifacts=tuple(message.artifacts),
        advice=message.advice,
        config=MessageToDict(message.config),
    )


def job_event(message: job_pb2.JobEvent) -> JobEvent:
    """Parses an event; kinds of later servers read as heartbeats."""
    time = when(message.time)
    detail: EventDetail = Heartbeat()
    match message.WhichOneof("event"):
        case "state":
            detail = StateChange(job_state(message.state.state), message.state.message)
        case "log":
            level = _name(job_pb2.LogEvent.Level.Name, message.log.level, "LEVEL_")
            detail = LogLine(time, level, message.log.message)
        case "metric":
            metric = message.metric
            detail = Measurement(
                _name(job_pb2.MetricEvent.Stage.Name, metric.stage, "STAGE_"),
                metric.step,
                metric.total_steps,
                metric.epoch,
                {m.name: m.value for m in metric.metrics},
            )
        case "checkpoint":
            saved = message.checkpoint
            detail = Checkpoint(saved.step, saved.bytes, saved.best)
        case "resumed":
            detail = Resumed(message.resumed.from_step, message.resumed.attempt)
        case "example":
            shown = message.example
            detail = Example(
                shown.query, tuple(shown.before), tuple(shown.after), tuple(shown.relevant)
            )
    return JobEvent(message.seq, time, detail)


def _name(name_of: Callable[[Any], str], value: int, prefix: str) -> str:
    try:
        name = name_of(value)
    except ValueError:
        return "UNKNOWN"
    return name.removeprefix(prefix)


def list_request(kind: JobKind | None, page_token: str) -> job_pb2.ListJobsRequest:
    """Asks for a page of the jobs of a kind; None: of all."""
    wanted = job_pb2.JOB_KIND_UNSPECIFIED
    if kind is not None and kind is not JobKind.UNKNOWN:
        wanted = job_pb2.JobKind.Value(f"JOB_KIND_{kind.value}")
    return job_pb2.ListJobsRequest(page_token=page_token, kind=wanted)
