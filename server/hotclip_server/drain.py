"""Refuses calls until the server has started, and ends those of one that stops: unary calls
finish, streams are told to resume elsewhere, new calls are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hotclip_server.errors import Unavailable

HEALTH = "/grpc.health.v1."
OURS = "/hotclip.v1."
QUIET_S, QUIET_ROUNDS = 0.05, 20

Call = asyncio.Task[object]


class Drain:
    """Knows the calls that run. Event loop only.

    gRPC itself cancels calls that it has received and not yet handed over when it is told to
    stop; so calls are refused and ended here first, and gRPC is stopped when none is left.

    Args:
        self_ending: Full names of streaming methods that watch `draining` and end by
            themselves once they answered what they took.
    """

    def __init__(self, self_ending: Sequence[str] = ()) -> None:
        self._self_ending = frozenset(self_ending)
        self._unary: set[Call] = set()
        self._streams: dict[Call, str] = {}
        self._ended: set[Call] = set()
        self._arrivals = 0
        self._started = False
        self.draining = asyncio.Event()

    def set_started(self) -> None:
        """From now on calls are taken."""
        self._started = True

    @property
    def streaming(self) -> list[str]:
        """Methods of the streams that run."""
        return list(self._streams.values())

    @contextmanager
    def unary(self, method: str) -> Iterator[None]:
        """Counts the running task as a call with one answer.

        Raises:
            Unavailable: the server is starting or stopping.
        """
        call = self._admit(method)
        self._unary.add(call)
        try:
            yield
        finally:
            self._unary.discard(call)

    @contextmanager
    def stream(self, method: str) -> Iterator[None]:
        """Counts the running task as a stream.

        Raises:
            Unavailable: the server is starting or stopping.
        """
        call = self._admit(method)
        self._streams[call] = method
        try:
            yield
        finally:
            self._streams.pop(call, None)

    def ended(self, call: Call) -> bool:
        """Whether the server, not the client, ended this stream."""
        return call in self._ended

    def error(self) -> Unavailable:
        """What a call is told that the server ends or refuses."""
        return Unavailable(
            "the server is stopping; go on elsewhere or later",
            retry_after_s=1.0,
            reason="SERVER_STOPPING",
        )

    async def finish(self, grace_s: float) -> None:
        """Refuses new calls, ends streams, waits up to `grace_s` seconds for what runs.

        Streams that end by themselves get the same time.
        """
        self.draining.set()
        for call, method in list(self._streams.items()):
            if method not in self._self_ending:
                self._end(call)
        ends = asyncio.get_running_loop().time() + grace_s
        while running := [*self._unary, *self._streams]:
            left = ends - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await asyncio.wait(running, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for call in list(self._streams):
            self._end(call)
        await self._refuse_the_last()

    async def _refuse_the_last(self) -> None:
        """Goes on until no call has come for a moment, but not for ever."""
        for _ in range(QUIET_ROUNDS):
            seen = self._arrivals
            await asyncio.sleep(QUIET_S)
            if seen == self._arrivals:
                return

    def _admit(self, method: str) -> Call:
        call = asyncio.current_task()
        if call is None:
            raise RuntimeError("a call runs outside of a task; this is a bug")
        self._arrivals += 1
        if not self._started and method.startswith(OURS):
            raise Unavailable("the server is starting", retry_after_s=1.0, reason="SERVER_STARTING")
        if self.draining.is_set() and not method.startswith(HEALTH):
            raise self.error()
        return call

    def _end(self, call: Call) -> None:
        self._ended.add(call)
        call.add_done_callback(self._ended.discard)
        call.cancel()
