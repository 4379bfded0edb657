"""What lets a job thread wait for the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopWait:
    """Runs work on the event loop and waits for it on a job thread: `wait(coroutine)`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Remembers the running loop; before the first job."""
        self._loop = asyncio.get_running_loop()

    def __call__(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises."""
        if self._loop is None:
            work.close()
            raise RuntimeError("a job ran before start; this is a bug")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
