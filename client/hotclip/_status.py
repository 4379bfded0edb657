"""From gRPC's errors to the client's: the one place where a foreign error is mapped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from hotclip.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    HotclipError,
    Internal,
    InvalidArgument,
    ItemError,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    SpaceMismatch,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from hotclip_proto.v1 import types_pb2

_CLASSES: Mapping[grpc.StatusCode, type[HotclipError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        OutOfRange,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Aborted,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        Unauthenticated,
        PermissionDenied,
        Unimplemented,
        DataLoss,
        Internal,
    )
}
_BY_NUMBER: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def status_code(number: int) -> grpc.StatusCode:
    """The gRPC status of a google.rpc.Code; UNKNOWN for numbers that there are not."""
    return _BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN)


def error_class(code: grpc.StatusCode, reason: str) -> type[HotclipError]:
    """The class that stands for a status and a reason."""
    if code is grpc.StatusCode.FAILED_PRECONDITION and reason == "SPACE_MISMATCH":
        return SpaceMismatch
    return _CLASSES.get(code, HotclipError)


def error_of(code: grpc.StatusCode, reason: str, message: str) -> HotclipError:
    """An error told inside a message, such as StreamError."""
    return error_class(code, reason)(message, reason=reason)


def item_errors(errors: Iterable[types_pb2.ItemError], offset: int = 0) -> list[ItemError]:
    """Errors of single items, their positions moved by `offset`."""
    return [ItemError(e.index + offset, status_code(e.code), e.reason, e.message) for e in errors]


def placed(error: ItemError, index: int) -> ItemError:
    """The error at the caller's position, which its message may name as well."""
    own = re.compile(rf"^(items|points|choices)\[{error.index}\]")
    message = own.sub(rf"\1[{index}]", error.message)
    return ItemError(index, error.code, error.reason, message)


def from_rpc(error: grpc.RpcError) -> HotclipError:
    """The client's error for one that gRPC raised, sync or asyncio.

    Reads ErrorInfo (reason, request id), BadRequest (fields) and RetryInfo from the rich
    status, if there is one.
    """
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return HotclipError(str(error) or type(error).__name__)
    code = error.code()
    message = error.details() or code.name
    status = _rich_status(error)
    if status is None:
        return error_class(code, "")(message)
    reason, retry_after = "", None
    metadata: dict[str, str] = {}
    fields: list[FieldViolation] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            fields += [FieldViolation(v.field, v.description) for v in bad.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return error_class(code, reason)(
        status.message or message,
        reason=reason,
        fields=fields,
        request_id=metadata.get("request_id", ""),
        retry_after=retry_after,
        metadata=metadata,
    )


def _rich_status(error: grpc.Call | grpc.aio.AioRpcError) -> status_pb2.Status | None:
    try:
        return rpc_status.from_call(error)
    except ValueError:  # its code or message contradict the plain ones: trust the plain ones
        return None
