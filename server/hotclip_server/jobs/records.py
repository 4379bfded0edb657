"""A job as it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from hotclip_server.jobs.states import JobState


class JobKind(StrEnum):
    """What a job does; the values are stored."""

    FINE_TUNE = "FINE_TUNE"
    EVALUATE = "EVALUATE"
    REINDEX = "REINDEX"
    EXPORT = "EXPORT"
    IMPORT = "IMPORT"
    DRIFT = "DRIFT"
    BRIDGE = "BRIDGE"


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job failed. `code` is a google.rpc.Code, `reason` is stable, for programs."""

    code: int
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What the caller of a job says of it.

    spec: What the handler needs, as JSON; complete, so that the job can run after a restart.
    name: Unique among jobs; empty: the id.
    request_id: Empty, or the caller's id of this wish: the same one again gives the same job.
    fingerprint: Of the caller's request; the same request_id with another one is refused.
    message: What its first event says, for people.
    """

    kind: JobKind
    spec: Mapping[str, Any]
    name: str = ""
    description: str = ""
    model: str = ""
    request_id: str = ""
    fingerprint: str = ""
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One row of the table of jobs. Times are aware, in UTC; `progress` is in [0, 1]."""

    id: str
    name: str
    kind: JobKind
    state: JobState
    model: str
    description: str
    spec: Mapping[str, Any]
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    progress: float
    last_seq: int
    error: JobError | None
    result_version: str
    activated: bool
    metrics: Mapping[str, float] = field(default_factory=dict)
    artifacts: Sequence[str] = ()
