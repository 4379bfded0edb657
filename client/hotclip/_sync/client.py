"""The client that blocks: an index of its methods, which live in files by resource."""

from __future__ import annotations

from types import TracebackType

import grpc

from hotclip._channel import Settings
from hotclip._sync import encoding, server
from hotclip._sync.connection import Connection


class Client:
    """Talks to a hotclip server. Threads may share one; make a new one after a fork.

    It connects with the first call. Close it, or use it in a `with`.

    Args:
        address: host:port, or a gRPC target such as dns:///host:port or unix:/path.
        timeout: Seconds that a call may take unless it says otherwise; math.inf: for ever.
        wait_for_ready: Whether calls wait for a connection (until their deadline) instead
            of raising Unavailable at once.
        retries: Whether reads, encode, and creations (which carry a request id) are tried
            up to five times when the server is unavailable.
        credentials: For TLS, see `grpc.ssl_channel_credentials`; None: plain text.

    Raises:
        InvalidArgument: Empty address, or a timeout that is no positive number.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        timeout: float = 60.0,
        wait_for_ready: bool = False,
        retries: bool = True,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        settings = Settings(
            address=address,
            timeout=timeout,
            wait_for_ready=wait_for_ready,
            retries=retries,
            credentials=credentials,
        )
        self._connection = Connection(settings)

    encode = encoding.encode
    encode_stream = encoding.encode_stream
    rank = encoding.rank

    server_info = server.server_info
    is_ready = server.is_ready
    wait_ready = server.wait_ready

    def close(self) -> None:
        """Ends every call and the connection; harmless if done already."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._connection.settings.address!r})"
