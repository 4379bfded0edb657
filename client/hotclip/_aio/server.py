"""What the server is, and whether it is ready; methods of AsyncClient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hotclip import _server
from hotclip._server import ServerInfo
from hotclip.errors import Cancelled, DeadlineExceeded, Unavailable
from hotclip_proto.v1 import server_pb2

if TYPE_CHECKING:
    from hotclip._aio.client import AsyncClient

_POLL_S = 0.1


async def server_info(self: AsyncClient, *, timeout: float | None = None) -> ServerInfo:
    """The server's version, device, limits and resident versions."""
    connection = self._connection
    request = server_pb2.GetServerInfoRequest()
    stub = connection.stubs().server
    reply = await connection.call(stub.GetServerInfo, request, connection.deadline(timeout))
    return _server.server_info(reply)


async def is_ready(self: AsyncClient, *, timeout: float = 2.0) -> bool:
    """Whether the server can be reached and its health service says SERVING.

    Args:
        timeout: Seconds after which the answer is no.
    """
    connection = self._connection
    try:
        return await connection.serving(connection.deadline(timeout))
    except (Unavailable, DeadlineExceeded):
        return False


async def wait_ready(self: AsyncClient, *, timeout: float = 60.0) -> None:
    """Waits until the server is ready.

    Args:
        timeout: Seconds to wait at most.

    Raises:
        DeadlineExceeded: It was not ready in time.
    """
    connection = self._connection
    deadline = connection.deadline(timeout)
    while True:
        try:
            if await connection.serving(deadline):
                return
        except (Unavailable, Cancelled) as error:
            if error.reason == "CLIENT_CLOSED":
                raise
        await connection.sleep(deadline.pause(_POLL_S))
