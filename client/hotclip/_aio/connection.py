"""One channel to a server: runs calls, maps errors, never leaves a call behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc

from hotclip._channel import Settings
from hotclip._deadline import Deadline
from hotclip._server import HEALTH_CHECK, HEALTH_REQUEST, SERVING, Limits, ServerInfo, server_info
from hotclip._status import from_rpc
from hotclip.errors import (
    Cancelled,
    HotclipError,
    Internal,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from hotclip_proto.v1 import (
    artifact_pb2_grpc,
    dataset_pb2_grpc,
    drift_pb2_grpc,
    encode_pb2_grpc,
    feedback_pb2_grpc,
    finetune_pb2_grpc,
    job_pb2_grpc,
    model_pb2_grpc,
    search_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)

if TYPE_CHECKING:
    from grpc import aio

Req = TypeVar("Req")
Res = TypeVar("Res")
T = TypeVar("T")

# What grpc.aio says when it can't send on a call that the server has ended.
_SEND_FAILED = "Internal error from Core"
_BROKEN = "STREAM_BROKEN"
_UPLOAD_ATTEMPTS = 5


@dataclass(frozen=True)
class Stubs:
    """The services of one channel."""

    encode: encode_pb2_grpc.EncodeServiceAsyncStub
    models: model_pb2_grpc.ModelServiceAsyncStub
    jobs: job_pb2_grpc.JobServiceAsyncStub
    datasets: dataset_pb2_grpc.DatasetServiceAsyncStub
    artifacts: artifact_pb2_grpc.ArtifactServiceAsyncStub
    search: search_pb2_grpc.SearchServiceAsyncStub
    finetune: finetune_pb2_grpc.FineTuneServiceAsyncStub
    feedback: feedback_pb2_grpc.FeedbackServiceAsyncStub
    drift: drift_pb2_grpc.DriftServiceAsyncStub
    server: server_pb2_grpc.ServerServiceAsyncStub


class Connection:
    """A channel that opens with the first call, on the event loop of that call."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._channel: aio.Channel | None = None
        self._stubs: Stubs | None = None
        self._info: ServerInfo | None = None
        self._closed = False
        self._pid = os.getpid()

    def channel(self) -> aio.Channel:
        """The channel, opened now if it was not."""
        if self._closed:
            raise Cancelled("the client is closed", reason="CLIENT_CLOSED")
        if self._pid != os.getpid():
            raise HotclipError("a client does not survive a fork: make one in each process")
        if self._channel is None:
            target, options = self.settings.target, self.settings.options()
            credentials = self.settings.credentials
            self._channel = (
                grpc.aio.insecure_channel(target, options)
                if credentials is None
                else grpc.aio.secure_channel(target, credentials, options)
            )
        return self._channel

    def stubs(self) -> Stubs:
        """The services of the channel."""
        if self._stubs is None or self._closed:
            channel = self.channel()
            self._stubs = Stubs(
                encode_pb2_grpc.EncodeServiceStub(channel),
                model_pb2_grpc.ModelServiceStub(channel),
                job_pb2_grpc.JobServiceStub(channel),
                dataset_pb2_grpc.DatasetServiceStub(channel),
                artifact_pb2_grpc.ArtifactServiceStub(channel),
                search_pb2_grpc.SearchServiceStub(channel),
                finetune_pb2_grpc.FineTuneServiceStub(channel),
                feedback_pb2_grpc.FeedbackServiceStub(channel),
                drift_pb2_grpc.DriftServiceStub(channel),
                server_pb2_grpc.ServerServiceStub(channel),
            )
        return self._stubs

    def deadline(self, timeout: float | None) -> Deadline:
        """The end of a call that starts now; None: the client's default."""
        return Deadline(self.settings.timeout if timeout is None else timeout)

    async def call(
        self, method: aio.UnaryUnaryMultiCallable[Req, Res], request: Req, deadline: Deadline
    ) -> Res:
        """One request, one answer; cancelled if waiting for it is."""
        running = method(
            request,
            timeout=deadline.remaining(),
            wait_for_ready=self.settings.wait_for_ready or None,
        )
        try:
            return await running
        except asyncio.CancelledError as error:
            raise _whose(error) from error
        except grpc.RpcError as error:
            known = from_rpc(error)
            if isinstance(known, ResourceExhausted):
                self._info = None  # perhaps the limits changed: ask again next time
            raise known from error
        finally:
            running.cancel()  # changes nothing if it is done

    async def watch(
        self,
        method: aio.UnaryStreamMultiCallable[Req, Res],
        request: Req,
        deadline: Deadline | None = None,
    ) -> AsyncGenerator[Res, None]:
        """One request, many answers; cancelled when the generator ends in any way."""
        running = method(
            request,
            timeout=deadline.remaining() if deadline else None,
            wait_for_ready=self.settings.wait_for_ready or None,
        )
        try:
            async for message in running:
                yield message
        except asyncio.CancelledError as error:
            raise _whose(error) from error
        except grpc.RpcError as error:
            raise from_rpc(error) from error
        finally:
            running.cancel()

    def duplex(
        self,
        method: aio.StreamStreamMultiCallable[Req, Res],
        deadline: Deadline | None = None,
    ) -> Duplex[Req, Res]:
        """Opens a stream in both directions."""
        return Duplex(
            method,
            timeout=deadline.remaining() if deadline else None,
            wait_for_ready=self.settings.wait_for_ready,
        )

    async def limits(self, deadline: Deadline) -> Limits:
        """The server's limits, asked once."""
        return (await self.info(deadline)).limits

    async def info(self, deadline: Deadline, *, fresh: bool = False) -> ServerInfo:
        """What the server says of itself; asked once, or now if `fresh`."""
        if self._info is None or fresh:
            request = server_pb2.GetServerInfoRequest()
            try:
                reply = await self.call(self.stubs().server.GetServerInfo, request, deadline)
            except Unimplemented:
                reply = server_pb2.GetServerInfoResponse()
            self._info = server_info(reply)
        return self._info

    async def serving(self, deadline: Deadline) -> bool:
        """Whether the server's health service says SERVING."""
        check: aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel().unary_unary(
            HEALTH_CHECK, request_serializer=None, response_deserializer=None
        )
        return await self.call(check, HEALTH_REQUEST, deadline) == SERVING

    async def run(self, work: Callable[[], T]) -> T:
        """Does work that may read files, on a thread."""
        return await asyncio.to_thread(work)

    async def pull(self, source: Iterable[T], *, blocking: bool) -> AsyncIterator[T]:
        """Goes through something that may read files if `blocking`: then on a thread."""
        if not blocking:
            for value in source:
                yield value
            return
        iterator, end = iter(source), object()
        while (got := await asyncio.to_thread(next, iterator, end)) is not end:
            yield got  # type: ignore[misc]  # it is not `end`, so it is a T

    async def each(self, items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
        """Goes through the caller's items."""
        if isinstance(items, AsyncIterable):
            async for item in items:
                yield item
        else:
            for item in items:
                yield item

    async def sleep(self, seconds: float) -> None:
        """Waits before another attempt."""
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """Ends the channel and every call on it; harmless if done already."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()


def _whose(error: asyncio.CancelledError) -> BaseException:
    """The caller's own cancellation as it is; that of a closing channel as the client's error."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return error
    return Cancelled("the client was closed", reason="CLIENT_CLOSED")


async def _told(call: aio.Call, error: grpc.RpcError) -> HotclipError:
    """What the server said, also when it said so while a message was being sent.

    grpc.aio then reports an INTERNAL error of its own, and the server's status mostly, but
    not always, soon afterwards; without it the error is Unavailable.
    """
    known = from_rpc(error)
    if not isinstance(known, Internal) or known.message != _SEND_FAILED:
        return known
    for _ in range(10):
        await asyncio.sleep(0.01)
        code = await call.code()
        if code is not grpc.StatusCode.INTERNAL:
            initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
            late = grpc.aio.AioRpcError(code, initial, trailing, await call.details())
            return from_rpc(late)
    return Unavailable("the stream ended while sending", reason=_BROKEN)


class Duplex(Generic[Req, Res]):
    """A stream in both directions; leaving its `async with` cancels it."""

    def __init__(
        self,
        method: aio.StreamStreamMultiCallable[Req, Res],
        *,
        timeout: float | None,
        wait_for_ready: bool,
    ) -> None:
        self._outgoing: asyncio.Queue[Req | None] = asyncio.Queue()
        self._call: aio.StreamStreamCall[Req, Res] = method(
            self._requests(), timeout=timeout, wait_for_ready=wait_for_ready or None
        )

    async def _requests(self) -> AsyncIterator[Req]:  # ends at None; runs on a task of gRPC
        while (request := await self._outgoing.get()) is not None:
            yield request

    async def send(self, request: Req) -> None:
        """Queues a request; never fails: a broken stream shows when receiving."""
        self._outgoing.put_nowait(request)

    async def receive(self) -> Res | None:
        """The next answer; None at the end of the stream."""
        try:
            reply: Any = await self._call.read()
        except asyncio.CancelledError as error:
            raise _whose(error) from error
        except grpc.RpcError as error:
            raise await _told(self._call, error) from error
        return None if reply is grpc.aio.EOF else reply

    def done_sending(self) -> None:
        """Tells the server that no request follows."""
        self._outgoing.put_nowait(None)

    async def __aenter__(self) -> Duplex[Req, Res]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._outgoing.put_nowait(None)  # lets gRPC's task end
        self._call.cancel()
