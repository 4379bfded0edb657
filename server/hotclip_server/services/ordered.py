"""Answers a stream of requests in order while several are under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


async def answer_in_order(
    requests: AsyncIterator[Q],
    answer: Callable[[Q], Awaitable[A]],
    limit: int,
    draining: asyncio.Event,
) -> AsyncGenerator[A]:
    """Yields one answer a request, in the order of the requests.

    At most `limit` requests are read and not yet taken by the reader of the answers; the next
    message is not read before, so that HTTP/2 flow control holds the client back. Once
    `draining` is set no more is read; what was read is still answered.

    Args:
        requests: Read one at a time.
        answer: Runs for each request, as a task of its own; must not raise.
        limit: Requests under way.
        draining: Ends the reading.
    """
    running: asyncio.Queue[asyncio.Task[A] | None] = asyncio.Queue()
    room = asyncio.Semaphore(limit)

    async def run(request: Q) -> A:
        return await answer(request)

    async def read() -> None:
        try:
            await room.acquire()
            async for request in requests:
                running.put_nowait(asyncio.create_task(run(request)))
                await room.acquire()
        finally:
            running.put_nowait(None)

    reader = asyncio.create_task(read())
    stopper = asyncio.create_task(draining.wait())
    stopper.add_done_callback(lambda _: reader.cancel())
    current: asyncio.Task[A] | None = None
    try:
        while (current := await running.get()) is not None:
            yield await current
            room.release()
        if not draining.is_set():
            await reader
    finally:
        reader.cancel()
        stopper.cancel()
        waiting: list[asyncio.Task[A] | None] = [current]
        while not running.empty():
            waiting.append(running.get_nowait())
        unfinished = [task for task in waiting if task is not None]
        for task in unfinished:
            task.cancel()
        await asyncio.gather(reader, stopper, *unfinished, return_exceptions=True)
