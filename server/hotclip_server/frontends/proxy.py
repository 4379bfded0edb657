"""Passes calls to the device process as they are: bytes, metadata, deadline, status, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from hotclip_server.errors import Unavailable
from hotclip_server.interceptors import ErrorInterceptor, abort

Context = grpc.aio.ServicerContext[Any, Any]

UNLIMITED = -1


class Proxy(grpc.aio.ServerInterceptor):
    """Answers some services here and passes every other call on.

    Whether a call has one message or many is the same on the wire, so every one is passed on
    as a stream both ways.

    Args:
        here: Prefixes of the methods that are answered in this process.
        errors: Wraps those.
        max_message_bytes: Of what is passed on.
    """

    def __init__(self, here: tuple[str, ...], errors: ErrorInterceptor, address: str) -> None:
        self._here = here
        self._errors = errors
        self._address = address
        self._channel: grpc.aio.Channel | None = None

    def open(self) -> None:
        """Connects when the first call comes."""
        self._channel = grpc.aio.insecure_channel(
            self._address,
            options=[
                ("grpc.max_receive_message_length", UNLIMITED),
                ("grpc.max_send_message_length", UNLIMITED),
                ("grpc.enable_retries", 0),  # the client's business
            ],
        )

    async def close(self) -> None:
        """Cancels what is under way."""
        if self._channel is not None:
            await self._channel.close()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Gives the handler."""
        method = handler_call_details.method
        if method.startswith(self._here):
            return await self._errors.intercept_service(continuation, handler_call_details)

        async def stream(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            if self._channel is None:
                raise RuntimeError("the proxy is not open; this is a bug")
            async for answer in _pass(self._channel, method, requests, context):
                yield answer

        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(stream)
        return handler


async def _pass(
    channel: grpc.aio.Channel, method: str, requests: AsyncIterator[bytes], context: Context
) -> AsyncIterator[bytes]:
    multi: Any = channel.stream_stream(method)
    call = multi(
        metadata=_metadata(context.invocation_metadata()),
        timeout=context.time_remaining(),
    )
    sending = asyncio.create_task(_send(call, requests))
    try:
        await context.send_initial_metadata(tuple(await call.initial_metadata()))
        while (answer := await call.read()) is not grpc.aio.EOF:
            yield answer
        code = await call.code()
        details, trailing = await call.details(), tuple(await call.trailing_metadata())
    except grpc.aio.AioRpcError as error:
        code, details, trailing = error.code(), error.details(), tuple(error.trailing_metadata())
    finally:
        # Also when the client went away or cancelled.
        sending.cancel()
        call.cancel()
    if code is grpc.StatusCode.OK:
        context.set_trailing_metadata(trailing)
    elif code is grpc.StatusCode.UNAVAILABLE and not trailing:
        await abort(context, Unavailable(f"the server does not answer: {details}"))
    else:
        await context.abort(code, details or "", trailing)


async def _send(call: Any, requests: AsyncIterator[bytes]) -> None:
    try:
        async for request in requests:
            await call.write(request)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        # It ended before it had read everything; its status says why.
        return


def _metadata(given: Any) -> tuple[tuple[str, str | bytes], ...]:
    """What the caller sent, without what each connection says for itself."""
    return tuple(
        (key, value)
        for key, value in given or ()
        if not key.startswith(("grpc-", ":")) and key != "user-agent"
    )
