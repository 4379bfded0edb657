"""The errors of the server's domain.

Each class carries the gRPC status it becomes; one boundary maps them. Anything else
that escapes a servicer becomes INTERNAL with a request id.

    HotclipError
    ├── InvalidArgument      the caller's input; names fields
    │   └── OutOfRange
    ├── NotFound
    ├── AlreadyExists
    ├── FailedPrecondition   wrong state or wrong space
    ├── Aborted              etag mismatch
    ├── ResourceExhausted    a limit or a quota
    ├── Unavailable          overload or not ready; says when to try again
    │   └── DeviceLost
    ├── DeadlineExceeded
    ├── Unimplemented
    └── DataLoss             stored data is damaged
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc


@dataclass(frozen=True)
class FieldViolation:
    """A field of a request and what is wrong with it, e.g. ("items[3].image", "empty")."""

    field: str
    reason: str


class HotclipError(Exception):
    """An error that has a gRPC status.

    Args:
        message: For people; one sentence.
        reason: UPPER_SNAKE_CASE, stable, for programs; the class's default if empty.
        violations: Fields of the request that are wrong.
        metadata: More for programs; strings only.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})


class InvalidArgument(HotclipError):
    """The caller's input is wrong, whatever the state of the server."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_ARGUMENT"

    @classmethod
    def field(cls, field: str, problem: str, *, reason: str = "") -> InvalidArgument:
        """One bad field."""
        return cls.fields([FieldViolation(field, problem)], reason=reason)

    @classmethod
    def fields(cls, violations: Sequence[FieldViolation], *, reason: str = "") -> InvalidArgument:
        """Several bad fields at once."""
        text = "; ".join(f"{v.field}: {v.reason}" for v in violations)
        return cls(text, reason=reason, violations=violations)


class OutOfRange(InvalidArgument):
    """A position past the end of what exists."""

    code = grpc.StatusCode.OUT_OF_RANGE
    default_reason = "OUT_OF_RANGE"


class NotFound(HotclipError):
    """No such model, version, job, dataset, collection or point."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExists(HotclipError):
    """The name is taken by something else."""

    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(HotclipError):
    """The request is right, the state of the server is not."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class Aborted(HotclipError):
    """Somebody else changed the state first."""

    code = grpc.StatusCode.ABORTED
    default_reason = "ETAG_MISMATCH"


class ResourceExhausted(HotclipError):
    """A limit per request or a quota; trying again as it is does not help."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"


class Unavailable(HotclipError):
    """Overload or not ready; try again after `retry_after_s` seconds."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_s: float = 0.1, reason: str = "") -> None:
        super().__init__(message, reason=reason)
        self.retry_after_s = retry_after_s


class DeviceLost(Unavailable):
    """The device fails every call since an error that only a new process gets over."""

    default_reason = "DEVICE_LOST"

    def __init__(self, message: str = "the device has failed and needs a restart") -> None:
        super().__init__(message, retry_after_s=5.0, reason="DEVICE_LOST")


class DeadlineExceeded(HotclipError):
    """The caller's deadline passed before the work was done."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class Unimplemented(HotclipError):
    """This server does not offer the call."""

    code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "UNIMPLEMENTED"


class DataLoss(HotclipError):
    """Stored data is damaged: a checksum does not match."""

    code = grpc.StatusCode.DATA_LOSS
    default_reason = "DATA_LOSS"
