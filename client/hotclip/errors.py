"""What can go wrong, as one tree; nothing of gRPC ever escapes the client.

HotclipError
├── InvalidArgument      the caller's input, refused here or by the server; also a ValueError
│   └── OutOfRange       a position past the end of what exists
├── ItemsFailed          some items of a list could not be used; names each
├── JobFailed            a job ended, but not well; holds it
├── NotFound             no such model, version, job, dataset, collection or point
├── AlreadyExists        the name is taken by something else
├── FailedPrecondition   the request is right, the state of the server is not
│   └── SpaceMismatch    vectors of two spaces would be compared
├── Aborted              somebody else changed the state first (etag)
├── ResourceExhausted    a limit per request or a quota
├── Unavailable          overload, not ready, or no connection; see retry_after
├── DeadlineExceeded     the time given was not enough
├── Cancelled            the call was cancelled, or the client closed
├── Unauthenticated      no or wrong credentials
├── PermissionDenied     the credentials do not allow this
├── Unimplemented        this server does not offer the call
├── DataLoss             data is damaged: a checksum or a sequence does not fit
└── Internal             a fault of the server; request_id finds it in its log
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import grpc

if TYPE_CHECKING:
    from hotclip._jobs import Job


@dataclass(frozen=True)
class FieldViolation:
    """A field of the input and what is wrong with it, e.g. ("items[3]", "empty text")."""

    field: str
    reason: str


@dataclass(frozen=True)
class ItemError:
    """Why one item of a list failed while the others were answered.

    `index` is the item's position in the caller's list, from 0; `reason` is stable and
    for programs, e.g. IMAGE_UNREADABLE; `message` is for people.
    """

    index: int
    code: grpc.StatusCode
    reason: str
    message: str


MOST_NAMED = 20
"""Fields in the text of an error; `fields` has all of them."""


class HotclipError(Exception):
    """Base of everything that the client raises on purpose.

    Attributes:
        code: gRPC status that the error has or would have.
        reason: UPPER_SNAKE_CASE, stable, for programs.
        message: For people.
        fields: What is wrong with which field of the input; empty if not about input.
        request_id: Finds the call in the server's log; empty if it never got there.
        retry_after: Seconds after which trying again makes sense; None if unknown.
        metadata: More for programs, e.g. the id of the dataset that already exists.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        fields: Sequence[FieldViolation] = (),
        request_id: str = "",
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code.name
        self.fields = tuple(fields)
        self.request_id = request_id
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        named = [f"{v.field}: {v.reason}" for v in self.fields if v.reason]
        known = "; ".join(named[:MOST_NAMED])
        text = self.message if not known or known in self.message else f"{self.message} ({known})"
        suffix = f" [request {self.request_id}]" if self.request_id else ""
        return f"{self.reason}: {text}{suffix}"


class InvalidArgument(HotclipError, ValueError):
    """The input is wrong, whatever the state of the server."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    @classmethod
    def field(cls, field: str, problem: str, *, reason: str = "") -> InvalidArgument:
        """One bad field, found before anything was sent."""
        return cls(f"{field}: {problem}", reason=reason, fields=[FieldViolation(field, problem)])


class OutOfRange(InvalidArgument):
    """A position past the end of what exists."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ItemsFailed(HotclipError):
    """Some items of a list could not be used; `errors` names each with its reason."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, errors: Sequence[ItemError], total: int, *, done: str = "") -> None:
        shown = "; ".join(f"[{e.index}] {e.reason}: {e.message}" for e in errors[:5])
        more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
        tail = f" ({done})" if done else ""
        super().__init__(
            f"{len(errors)} of {total} items failed: {shown}{more}{tail}",
            reason="ITEMS_FAILED",
            fields=[FieldViolation(f"items[{e.index}]", e.message) for e in errors],
        )
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class JobFailed(HotclipError):
    """A job ended as FAILED, CANCELLED or INTERRUPTED; `job` is how it ended."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, job: Job) -> None:
        detail = f": {job.error.message}" if job.error and job.error.message else ""
        reason = job.error.reason if job.error else f"JOB_{job.state.value}"
        super().__init__(f"job {job.name} ended as {job.state.value}{detail}", reason=reason)
        self.job = job


class NotFound(HotclipError):
    """No such model, version, job, dataset, collection or point."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(HotclipError):
    """The name is taken by something else."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(HotclipError):
    """The request is right, the state of the server is not."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class SpaceMismatch(FailedPrecondition):
    """Vectors of two spaces would be compared, or the space asked for is not resident."""


class Aborted(HotclipError):
    """Somebody else changed the state first; read it again and decide anew."""

    code = grpc.StatusCode.ABORTED


class ResourceExhausted(HotclipError):
    """A limit per request or a quota; trying again as it is does not help."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(HotclipError):
    """Overload, not ready, or no connection; `retry_after` says when to try again."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(HotclipError):
    """The time given was not enough."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(HotclipError):
    """The call was cancelled, or the client was closed."""

    code = grpc.StatusCode.CANCELLED


class Unauthenticated(HotclipError):
    """No or wrong credentials."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(HotclipError):
    """The credentials do not allow this call."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(HotclipError):
    """This server does not offer the call."""

    code = grpc.StatusCode.UNIMPLEMENTED


class DataLoss(HotclipError):
    """Data is damaged: a checksum or a sequence does not fit."""

    code = grpc.StatusCode.DATA_LOSS


class Internal(HotclipError):
    """A fault of the server; `request_id` finds it in the server's log."""

    code = grpc.StatusCode.INTERNAL
