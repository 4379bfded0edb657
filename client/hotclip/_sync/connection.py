"""One channel to a server: runs calls, maps errors, never leaves a call behind."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

import grpc

from hotclip._channel import Settings
from hotclip._deadline import Deadline
from hotclip._server import HEALTH_CHECK, HEALTH_REQUEST, SERVING, Limits, ServerInfo, server_info
from hotclip._status import from_rpc
from hotclip.errors import Cancelled, HotclipError, ResourceExhausted, Unimplemented
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

Req = TypeVar("Req")
Res = TypeVar("Res")
T = TypeVar("T")


@dataclass(frozen=True)
class Stubs:
    """The services of one channel."""

    encode: encode_pb2_grpc.EncodeServiceStub
    models: model_pb2_grpc.ModelServiceStub
    jobs: job_pb2_grpc.JobServiceStub
    datasets: dataset_pb2_grpc.DatasetServiceStub
    artifacts: artifact_pb2_grpc.ArtifactServiceStub
    search: search_pb2_grpc.SearchServiceStub
    finetune: finetune_pb2_grpc.FineTuneServiceStub
    feedback: feedback_pb2_grpc.FeedbackServiceStub
    drift: drift_pb2_grpc.DriftServiceStub
    server: server_pb2_grpc.ServerServiceStub


class Connection:
    """A channel that opens with the first call. Threads may share it, forks may not."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stubs: Stubs | None = None
        self._info: ServerInfo | None = None
        self._closed = False
        self._pid = os.getpid()

    def channel(self) -> grpc.Channel:
        """The channel, opened now if it was not."""
        if self._closed:
            raise Cancelled("the client is closed", reason="CLIENT_CLOSED")
        if self._pid != os.getpid():
            raise HotclipError("a client does not survive a fork: make one in each process")
        with self._lock:
            if self._channel is None:
                target, options = self.settings.target, self.settings.options()
                credentials = self.settings.credentials
                self._channel = (
                    grpc.insecure_channel(target, options)
                    if credentials is None
                    else grpc.secure_channel(target, credentials, options)
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

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[Req, Res], request: Req, deadline: Deadline
    ) -> Res:
        """One request, one answer; cancelled if waiting for it is interrupted."""
        # Not method.future: it wakes a thread for each answer, twice the work of this.
        try:
            return method(
                request,
                timeout=deadline.remaining(),
                wait_for_ready=self.settings.wait_for_ready or None,
            )
        except grpc.RpcError as error:
            if self._closed:
                raise Cancelled("the client was closed", reason="CLIENT_CLOSED") from error
            known = from_rpc(error)
            if isinstance(known, ResourceExhausted):
                self._info = None  # perhaps the limits changed: ask again next time
            raise known from error

    def watch(
        self,
        method: grpc.UnaryStreamMultiCallable[Req, Res],
        request: Req,
        deadline: Deadline | None = None,
    ) -> Generator[Res, None, None]:
        """One request, many answers; cancelled when the generator ends in any way."""
        running = method(
            request,
            timeout=deadline.remaining() if deadline else None,
            wait_for_ready=self.settings.wait_for_ready or None,
        )
        try:
            yield from running
        except grpc.RpcError as error:
            raise from_rpc(error) from error
        finally:
            running.cancel()

    def duplex(
        self,
        method: grpc.StreamStreamMultiCallable[Req, Res],
        deadline: Deadline | None = None,
    ) -> Duplex[Req, Res]:
        """Opens a stream in both directions."""
        return Duplex(
            method,
            timeout=deadline.remaining() if deadline else None,
            wait_for_ready=self.settings.wait_for_ready,
        )

    def limits(self, deadline: Deadline) -> Limits:
        """The server's limits, asked once."""
        return (self.info(deadline)).limits

    def info(self, deadline: Deadline, *, fresh: bool = False) -> ServerInfo:
        """What the server says of itself; asked once, or now if `fresh`."""
        if self._info is None or fresh:
            request = server_pb2.GetServerInfoRequest()
            try:
                reply = self.call(self.stubs().server.GetServerInfo, request, deadline)
            except Unimplemented:
                reply = server_pb2.GetServerInfoResponse()
            self._info = server_info(reply)
        return self._info

    def serving(self, deadline: Deadline) -> bool:
        """Whether the server's health service says SERVING."""
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel().unary_unary(
            HEALTH_CHECK, request_serializer=None, response_deserializer=None
        )
        return self.call(check, HEALTH_REQUEST, deadline) == SERVING

    def run(self, work: Callable[[], T]) -> T:
        """Does work that may read files."""
        return work()

    def pull(self, source: Iterable[T], *, blocking: bool) -> Iterable[T]:
        """Goes through something that may read files if `blocking`."""
        return source

    def each(self, items: Iterable[T]) -> Iterable[T]:
        """Goes through the caller's items."""
        return items

    def sleep(self, seconds: float) -> None:
        """Waits before another attempt."""
        time.sleep(seconds)

    def close(self) -> None:
        """Ends the channel and every call on it; harmless if done already."""
        with self._lock:
            self._closed = True
            if self._channel is not None:
                self._channel.close()


class Duplex(Generic[Req, Res]):
    """A stream in both directions; leaving its `with` cancels it."""

    def __init__(
        self,
        method: grpc.StreamStreamMultiCallable[Req, Res],
        *,
        timeout: float | None,
        wait_for_ready: bool,
    ) -> None:
        self._outgoing: queue.SimpleQueue[Req | None] = queue.SimpleQueue()
        self._call = method(
            iter(self._outgoing.get, None),  # ends at None; runs on a thread of gRPC
            timeout=timeout,
            wait_for_ready=wait_for_ready or None,
        )

    def send(self, request: Req) -> None:
        """Queues a request; never fails: a broken stream shows when receiving."""
        self._outgoing.put(request)

    def receive(self) -> Res | None:
        """The next answer; None at the end of the stream."""
        try:
            return next(self._call, None)
        except grpc.RpcError as error:
            raise from_rpc(error) from error

    def done_sending(self) -> None:
        """Tells the server that no request follows."""
        self._outgoing.put(None)

    def __enter__(self) -> Duplex[Req, Res]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._outgoing.put(None)  # lets gRPC's thread end
        self._call.cancel()
