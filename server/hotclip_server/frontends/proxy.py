"""Passes calls to the device process as they are: bytes, metadata, deadline, status, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, without stubs

from hotclip_server.boundary import Handler, abort
from hotclip_server.errors import Unavailable

Context = grpc.aio.ServicerContext[Any, Any]

UNLIMITED = -1


class Proxy:
    """Passes calls on.

    Whether a call is answered with one message or many is the same on the wire, so every one is
    passed on as a stream of answers.

    Args:
        address: Of the device process.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: Any = None

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

    def handler(self, method: str, *, many: bool) -> Handler:
        """What passes the calls of a method on.

        Args:
            method: Its full name.
            many: Whether a call of it sends many messages.
        """
        handler: Handler
        if many:
            handler = grpc.stream_stream_rpc_method_handler(self._stream(method))
        else:
            handler = grpc.unary_stream_rpc_method_handler(self._unary(method))
        return handler

    def _unary(self, method: str) -> Any:
        async def passed(request: bytes, context: Context) -> AsyncIterator[bytes]:
            call = self._channel.unary_stream(method)(request, **_terms(context))
            async with aclosing(_answers(call, context)) as answers:
                async for answer in answers:
                    yield answer

        return passed

    def _stream(self, method: str) -> Any:
        async def passed(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            call = self._channel.stream_stream(method)(**_terms(context))
            sending = asyncio.create_task(_send(call, requests))
            try:
                async with aclosing(_answers(call, context)) as answers:
                    async for answer in answers:
                        yield answer
            finally:
                sending.cancel()

        return passed


async def _answers(call: Any, context: Context) -> AsyncGenerator[bytes, None]:
    try:
        await context.send_initial_metadata(tuple(await call.initial_metadata()))
        while (answer := await call.read()) is not grpc.aio.EOF:
            yield answer
        code, details = await call.code(), await call.details()
        trailing = tuple(await call.trailing_metadata())
    except grpc.aio.AioRpcError as error:
        code, details, trailing = error.code(), error.details(), tuple(error.trailing_metadata())
    finally:
        # Also when the client went away or cancelled.
        call.cancel()
    if code is grpc.StatusCode.OK:
        context.set_trailing_metadata(trailing)
    elif code is grpc.StatusCode.UNAVAILABLE and not trailing:
        await abort(context, Unavailable(f"the server does not answer: {details}"))
    else:
        await context.abort(code, details or "", trailing)


async def _send(call: Any, requests: AsyncIterator[bytes]) -> None:
    # What `call.write` does, but for a call that has ended already: that would put an error of
    # its own in the place of the status (grpc 1.85, `_StreamRequestMixin._write`).
    raw = call._cython_call
    try:
        await call.wait_for_connection()
        async for request in requests:
            await raw.send_serialized_message(request)
        await raw.send_receive_close()
    except (cygrpc.InternalError, grpc.aio.AioRpcError):
        # It ended before it had read everything; its status says why.
        return


def _terms(context: Context) -> dict[str, Any]:
    """Metadata and deadline of a call, without what each connection says for itself."""
    given = context.invocation_metadata() or ()
    metadata = tuple(
        (key, value)
        for key, value in given
        if not key.startswith(("grpc-", ":")) and key != "user-agent"
    )
    return {"metadata": metadata, "timeout": context.time_remaining()}
