"""The one place where errors become gRPC statuses.

Domain errors carry their status; whatever else escapes a servicer becomes INTERNAL with a
request id that the log explains.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from hotclip_server.drain import Drain
from hotclip_server.errors import (
    FieldViolation,
    HotclipError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from hotclip_server.storage.atomic import is_disk_full

log = logging.getLogger(__name__)

DOMAIN = "hotclip"
PUSHBACK = "grpc-retry-pushback-ms"
MOST_MESSAGE_BYTES, MOST_FIELD_BYTES, MOST_VIOLATION_BYTES = 1024, 256, 2048
"""Of a status. It travels in the trailers, its message twice, and peers refuse trailers of more
than 8 KiB: the caller would learn nothing."""

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def status_of(error: HotclipError) -> status_pb2.Status:
    """The google.rpc.Status of a domain error: ErrorInfo always, BadRequest for bad fields,
    RetryInfo for overload. What is long is cut, and of many bad fields the first are named."""
    message = cut(error.message, MOST_MESSAGE_BYTES)
    status = status_pb2.Status(code=grpc_code(error), message=message)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    )
    if error.violations:
        status.details.add().Pack(_bad_request(error.violations))
    if isinstance(error, Unavailable):
        delay = Duration()
        delay.FromMilliseconds(round(1000 * error.retry_after_s))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def cut(text: str, most: int) -> str:
    """At most so many bytes of a text as UTF-8; what is cut ends with an ellipsis."""
    data = text.encode()
    return text if len(data) <= most else f"{data[: most - 3].decode(errors='ignore')}…"


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    bad, left = error_details_pb2.BadRequest(), MOST_VIOLATION_BYTES
    for violation in violations:
        found = bad.field_violations.add(
            field=cut(violation.field, MOST_FIELD_BYTES),
            description=cut(violation.reason, MOST_MESSAGE_BYTES),
        )
        left -= found.ByteSize()
        if left < 0 and len(bad.field_violations) > 1:
            del bad.field_violations[-1]
            break
    return bad


def grpc_code(error: HotclipError) -> int:
    """The google.rpc.Code of a domain error."""
    return int(code_pb2.Code.Value(error.code.name))


def internal_error(method: str, cause: BaseException) -> HotclipError:
    """Logs an unexpected error with its traceback under a new request id, which is all that
    the caller learns."""
    request_id = uuid.uuid4().hex
    log.error("%s failed, request id %s", method, request_id, exc_info=cause)
    return HotclipError(
        f"internal error, request id {request_id}", metadata={"request_id": request_id}
    )


async def abort(context: Context, error: HotclipError) -> NoReturn:
    """Ends the call with the status of a domain error."""
    status = rpc_status.to_status(status_of(error))
    trailing = tuple(status.trailing_metadata)
    if isinstance(error, Unavailable):
        trailing += ((PUSHBACK, str(round(1000 * error.retry_after_s))),)
    await context.abort(status.code, status.details, trailing)


class ErrorBoundary:
    """Wraps every handler; `drain` knows the calls that run.

    Args:
        drain: Ends streams when the server stops.
        max_message_bytes: Largest answer; gRPC would refuse it without a reason.
    """

    def __init__(self, drain: Drain, max_message_bytes: int) -> None:
        self._drain = drain
        self._max_message_bytes = max_message_bytes

    def wrapped(self, method: str, handler: Any) -> Handler:
        """The handler of a method with errors mapped.

        Args:
            method: Its full name, "/package.Service/Method".
            handler: As grpc makes it.
        """
        make = _MAKERS[handler.request_streaming, handler.response_streaming]
        behaviour = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        wrap = self._stream if handler.response_streaming else self._call
        read = _read_stream if handler.request_streaming else _read
        wrapped: Handler = make(
            wrap(method, lambda request, context: behaviour(read(request), context)),
            _decoder(handler.request_deserializer),
            handler.response_serializer,
        )
        return wrapped

    def _call(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            try:
                with self._drain.unary(method):
                    answer = await behaviour(request, context)
                    if answer.ByteSize() > self._max_message_bytes:
                        raise ResourceExhausted(
                            f"the answer is larger than {self._max_message_bytes} bytes; ask for "
                            "less at a time",
                            reason="ANSWER_TOO_LARGE",
                        )
                    return answer
            except BaseException as error:  # noqa: BLE001 - mapped or raised again, never dropped
                await self._fail(method, context, error)

        return call

    def _stream(self, method: str, behaviour: Any) -> Any:
        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                with self._drain.stream(method):
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            yield response
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - mapped or raised again
                await self._fail(method, context, error)

        return stream

    async def _fail(self, method: str, context: Context, error: BaseException) -> NoReturn:
        if isinstance(error, HotclipError):
            await abort(context, error)
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and self._drain.ended(task):
                task.uncancel()
                await abort(context, self._drain.error())
            if context.done() or (task is not None and task.cancelling()):
                raise error
            # Cancelled from within: raised as it is, the client would hang (grpc#29248).
        elif not isinstance(error, Exception):
            raise error
        if isinstance(error, NotImplementedError) and context.code() in _UNIMPLEMENTED:
            # The generated base classes set the code and raise for RPCs that a servicer leaves
            # out. Without the code it is a fault, e.g. an operator that a device lacks.
            await abort(context, Unimplemented(f"{method} is not implemented by this server"))
        if is_disk_full(error):
            log.error("%s failed: the disk is full (%s)", method, error)
            await abort(context, ResourceExhausted("the disk is full", reason="DISK_FULL"))
        await abort(context, internal_error(method, error))


# grpc.aio gives back the number of a code that was set.
_UNIMPLEMENTED = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNIMPLEMENTED.value[0])


def unknown_method(method: str) -> Handler:
    """What answers calls of a method that there is not."""

    async def unknown(_requests: Any, context: Context) -> None:
        await abort(context, Unimplemented(f"there is no method {method}"))

    return grpc.stream_stream_rpc_method_handler(unknown)


class _Undecodable:
    """A message that is not of the method's type."""


def _decoder(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Where a message is decoded gRPC answers by itself; the error is kept for the handler."""

    def decode(message: bytes) -> Any:
        try:
            return deserialize(message)
        except DecodeError:
            return _Undecodable()

    return decode


def _read(request: Any) -> Any:
    if isinstance(request, _Undecodable):
        raise InvalidArgument(
            "the message is not what this method takes, or a string is not UTF-8",
            reason="MESSAGE_INVALID",
        )
    return request


async def _read_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _read(request)


_MAKERS: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
