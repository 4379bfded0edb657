"""Ends the calls of a server that stops: streams are told to resume elsewhere, unary calls
finish."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hotclip_server.errors import Unavailable


class Drain:
    """Knows the streams that run. Event loop only.

    Args:
        self_ending: Full names of streaming methods that watch `draining` and end by
            themselves once they answered what they took.
    """

    def __init__(self, self_ending: Sequence[str] = ()) -> None:
        self._self_ending = frozenset(self_ending)
        self._streams: dict[asyncio.Task[object], str] = {}
        self._ended: set[asyncio.Task[object]] = set()
        self.draining = asyncio.Event()

    @contextmanager
    def stream(self, method: str) -> Iterator[None]:
        """Counts the running task as a stream."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a stream runs outside of a task; this is a bug")
        self._streams[task] = method
        try:
            yield
        finally:
            self._streams.pop(task, None)
            self._ended.discard(task)

    def ended(self, task: asyncio.Task[object]) -> bool:
        """Whether the server, not the client, ended this stream."""
        return task in self._ended

    def error(self) -> Unavailable:
        """What a stream that the server ended is told."""
        return Unavailable(
            "the server is stopping; resume on another or later",
            retry_after_s=1.0,
            reason="SERVER_STOPPING",
        )

    async def end_streams(self, grace_s: float) -> None:
        """Ends every stream; those that end by themselves get `grace_s` seconds."""
        self.draining.set()
        for task, method in list(self._streams.items()):
            if method not in self._self_ending:
                self._end(task)
        deadline = asyncio.get_running_loop().time() + grace_s
        while self._streams:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await asyncio.wait(
                list(self._streams), timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
        for task in list(self._streams):
            self._end(task)

    def _end(self, task: asyncio.Task[object]) -> None:
        self._ended.add(task)
        task.cancel()
