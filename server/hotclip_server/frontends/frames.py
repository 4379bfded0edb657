"""Frames between a front end and the device process, over a socket pair.

A frame is a little-endian uint32 (length of the body), a byte (its kind), the body. All frames
of one turn of the loop are written at once.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any

_HEAD = struct.Struct("<IB")


class Kind(IntEnum):
    """What a frame says."""

    CONTROL = 0
    """A JSON object; both ways."""
    OPEN = 1
    """To the device: a request asks to be admitted."""
    ITEMS = 2
    """To the device: items that are prepared."""
    SETTLED = 3
    """To the device: items that need no device."""
    CANCEL = 4
    """To the device: nobody waits any more."""
    FEED = 5
    """To the front end: a part of a request is admitted."""
    ANSWER = 6
    """To the front end: what came of a request."""
    FAILED = 7
    """To the front end: the request failed as a whole."""
    FREE = 8
    """To the front end: places of items that are not needed any more."""
    COPY = 9
    """To the device: a request that was answered, for shadow traffic."""


class Frames(asyncio.Protocol):
    """One end of the socket pair. Event loop only.

    Args:
        on_frame: Called with the kind and the body of every frame, in order.
        on_lost: Called once when the other side is gone, or `on_frame` failed.
    """

    def __init__(
        self, on_frame: Callable[[int, bytes], None], on_lost: Callable[[Exception | None], None]
    ) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._transport: asyncio.WriteTransport | None = None
        self._out: list[bytes] = []
        self._rest = b""

    def send(self, kind: Kind, body: bytes) -> None:
        """Writes a frame at the end of this turn of the loop; dropped if the other is gone."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(_HEAD.pack(len(body), kind))
        self._out.append(body)

    def tell(self, what: str, **facts: object) -> None:
        """Sends a control frame."""
        body = json.dumps({"what": what, **facts}, separators=(",", ":"))
        self.send(Kind.CONTROL, body.encode())

    def close(self) -> None:
        """Writes what waits to be written and ends the connection."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        data = self._rest + data if self._rest else data
        at = 0
        try:
            while len(data) - at >= _HEAD.size:
                length, kind = _HEAD.unpack_from(data, at)
                end = at + _HEAD.size + length
                if end > len(data):
                    break
                self._on_frame(kind, data[at + _HEAD.size : end])
                at = end
        except Exception as error:  # noqa: BLE001 - the two sides have lost step
            self._lose(error)
            return
        self._rest = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._lose(exc)

    def _flush(self) -> None:
        out, self._out = b"".join(self._out), []
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(out)

    def _lose(self, error: Exception | None) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            self._on_lost(error)
