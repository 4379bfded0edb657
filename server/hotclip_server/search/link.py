"""The socket between the server and its vector process, at either end.

A frame is sent by whoever has it and handed over by the callback that reads it: no task waits
for the socket, and a call passes the event loop as few times as it can.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Self, TypeAlias, cast

from hotclip_server.search import wire

Received: TypeAlias = Callable[["Link", dict[str, Any], bytes], None]
"""Called with the link, header and body of a frame."""


class Link(asyncio.Protocol):
    """One end; `over` makes one. Event loop only.

    Args:
        received: Called with each frame, in their order; never again once the link was closed.
    """

    def __init__(self, received: Received) -> None:
        self._received = received
        self._incoming = bytearray()
        self._room = asyncio.Event()
        self._room.set()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def over(cls, connection: socket.socket, received: Received) -> Self:
        """A link over a connected stream socket, which it owns from now on."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(lambda: cls(received), sock=connection)
        return link

    def send(self, frame: bytes) -> None:
        """Sends it as the socket takes it.

        Raises:
            ConnectionError: the link has ended.
        """
        if self._transport.is_closing():
            raise _gone()
        self._transport.write(frame)

    async def room(self) -> None:
        """Waits while more than some 64 KiB are not sent.

        Raises:
            ConnectionError: the link has ended before.
        """
        if not self._room.is_set():
            await self._room.wait()
            if self._end.done():
                raise _gone()

    async def ended(self) -> None:
        """Waits until the other end is gone, or this one was closed.

        Raises:
            ValueError: what came is no frame; this is a bug.
        """
        await asyncio.shield(self._end)

    async def finish(self) -> None:
        """Takes nothing more, and waits until all was sent or the other end is gone."""
        self._transport.close()
        await self.ended()

    def close(self) -> None:
        """Ends the link; what is not sent is lost. Harmless if done already."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._incoming += data
        try:
            while (frame := wire.take(self._incoming)) is not None:
                if self._transport.is_closing():
                    return
                self._received(self, *frame)
        except ValueError as error:
            if not self._end.done():
                self._end.set_exception(error)
            self.close()

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._room.clear()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._room.set()

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        if not self._end.done():
            self._end.set_result(None)
        self._room.set()


def _gone() -> ConnectionResetError:
    return ConnectionResetError("the other end is gone")
