"""Messages between the server and its training process: JSON after its length, no pickle."""

from __future__ import annotations

import json
import select
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("<I")
CALLS = frozenset(
    (
        *("running", "check_cancelled", "log", "metric", "checkpoint", "resumed", "example"),
        "progress",
    )
)
"""Methods of `JobContext` that the training process has the server call."""


class Connection:
    """One end of a socket pair; one thread at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, message: dict[str, Any]) -> None:
        """Raises ConnectionError if the other side is gone."""
        data = json.dumps(message, separators=(",", ":")).encode()
        self._end.sendall(_LENGTH.pack(len(data)) + data)

    def ready(self, timeout_s: float) -> bool:
        """Whether there is something to receive, or the other side is gone."""
        return bool(select.select([self._end], [], [], timeout_s)[0])

    def receive(self) -> dict[str, Any]:
        """The next message. Raises ConnectionError if the other side is gone."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        message: dict[str, Any] = json.loads(self._exactly(length))
        return message

    def close(self) -> None:
        """The other side finds nobody there."""
        self._end.close()

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._end.recv(count - len(data))
            if not part:
                raise ConnectionResetError("the other side is gone")
            data += part
        return bytes(data)
