"""Work of the event loop that goes on when its caller is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Keeps the tasks that it started until they end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts `work`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def uninterrupted(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits `work`, which goes on to its end when the caller is cancelled: what is
        committed must also become visible."""
        task = self.spawn(work)
        # Without a caller nobody else looks at its error.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def settle(self, within_s: float | None = None) -> bool:
        """Waits until nothing runs, at most so many seconds; whether nothing does."""
        loop = asyncio.get_running_loop()
        ends = None if within_s is None else loop.time() + within_s
        while self._tasks:
            left = None if ends is None else max(0.0, ends - loop.time())
            all_of_them = asyncio.gather(*self._tasks, return_exceptions=True)
            done, _ = await asyncio.wait({all_of_them}, timeout=left)
            if not done:
                return False
        return True
