"""The socket between the server and its vector process, at either end.

A frame is sent by whoever has it and handed over by the callback that reads it: no task waits
for the socket, and a call passes the event loop as few times as it can.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from hotclip_server.search import wire

_READ_BYTES = 256 << 10
_HELD_BYTES = 64 << 10
"""What may wait to be sent before a sender is held back."""


class Link:
    """One end. Event loop only.

    Args:
        connection: A connected stream socket, which the link owns from now on.
        received: Called with header and body of each frame, in their order; never again once
            the link has ended.
    """

    def __init__(
        self, connection: socket.socket, received: Callable[[dict[str, Any], bytes], None]
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._received = received
        self._incoming = bytearray()
        self._outgoing: deque[memoryview] = deque()
        self._held = 0
        self._sent = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(connection, self._read)

    def send(self, frame: bytes) -> None:
        """Sends now what the socket takes, and the rest as it takes it.

        Raises:
            ConnectionError: the link has ended.
        """
        if self._end.done():
            raise ConnectionResetError("the other end is gone")
        rest = memoryview(frame)
        if not self._outgoing:
            rest = rest[self._send(rest) :]
            if not rest:
                return
            self._loop.add_writer(self._connection, self._write)
        self._outgoing.append(rest)
        self._held += len(rest)
        self._sent.clear()

    async def room(self, most: int = _HELD_BYTES) -> None:
        """Waits until at most so many bytes are not sent.

        Raises:
            ConnectionError: the link has ended before.
        """
        while self._held > most:
            await self._sent.wait()
            if self._end.done():
                raise ConnectionResetError("the other end is gone")

    async def ended(self) -> None:
        """Waits until the other end is gone, or this one was closed.

        Raises:
            ValueError: what came is no frame; this is a bug.
        """
        await asyncio.shield(self._end)

    def close(self) -> None:
        """Ends the link; what is not sent is lost. Harmless if done already."""
        if self._connection.fileno() >= 0:
            self._loop.remove_reader(self._connection)
            self._loop.remove_writer(self._connection)
            self._connection.close()
        if not self._end.done():
            self._end.set_result(None)
        self._sent.set()

    def _read(self) -> None:
        try:
            came = self._connection.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            came = b""
        if not came:
            self.close()
            return
        self._incoming += came
        try:
            while not self._end.done() and (frame := wire.take(self._incoming)) is not None:
                self._received(*frame)
        except ValueError as error:
            if not self._end.done():
                self._end.set_exception(error)
            self.close()

    def _write(self) -> None:
        """Goes on with what is left."""
        while self._outgoing:
            first = self._outgoing[0]
            try:
                sent = self._send(first)
            except ConnectionError:
                return
            self._held -= sent
            if sent < len(first):
                self._outgoing[0] = first[sent:]
                break
            self._outgoing.popleft()
        else:
            self._loop.remove_writer(self._connection)
        self._sent.set()
        self._sent.clear()

    def _send(self, data: memoryview) -> int:
        """How much of it the socket took. Raises ConnectionError, and has ended the link."""
        try:
            return self._connection.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self.close()
            raise ConnectionResetError("the other end is gone") from error
