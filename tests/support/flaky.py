"""A way to a server that breaks: connections through it end after some bytes."""

from __future__ import annotations

import asyncio
import socket
import threading
from types import TracebackType


class FlakyProxy:
    """Passes bytes to `address`; each of the first connections is cut after `cuts[i]` bytes of
    answers. Runs on a thread of its own.
    """

    def __init__(self, address: str, cuts: list[int]) -> None:
        self._host, port = address.rsplit(":", 1)
        self._port = int(port)
        self._cuts = list(cuts)
        self.cut = 0
        """How many connections were cut."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.address = ""

    def __enter__(self) -> FlakyProxy:
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, family=socket.AF_INET), self._loop
        )
        self._server = listening.result(10)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._cuts.pop(0) if self._cuts else None
        above, below = await asyncio.open_connection(self._host, self._port)
        asking = asyncio.create_task(_pass(reader, below, None))
        try:
            if await _pass(above, writer, left):
                self.cut += 1
                writer.transport.abort()
        finally:
            asking.cancel()
            below.transport.abort()
            writer.close()


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None
) -> bool:
    """Until the end, or for at most `limit` bytes; whether it was cut there."""
    passed = 0
    try:
        while data := await reader.read(1 << 16):
            passed += len(data)
            if limit is not None and passed > limit:
                return True
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return False
    return False
