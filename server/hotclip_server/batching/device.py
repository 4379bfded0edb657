"""The device thread: the only thread on which encoders run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hotclip_server.encoding.protocol import Encoder, Prepared, Tower

T = TypeVar("T")


class DeviceThread:
    """Runs calls one after the other on one thread; `start` starts it.

    A daemon thread: an encoder that hangs must not keep the process from ending.

    Args:
        depth: Batches that it takes at a time; more than one waits here for its turn.
    """

    def __init__(self, depth: int = 1) -> None:
        self.depth = depth
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._work, name="hotclip-device", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Lets running calls end; blocks up to `timeout_s`.

        Returns:
            Whether the thread has ended.
        """
        if self._thread is None:
            return True
        self._calls.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    async def run(
        self, encoder: Encoder, tower: Tower, batch: Sequence[Prepared]
    ) -> NDArray[np.float32]:
        """Runs one batch; raises what the encoder raises."""
        return await self.call(lambda: encoder.encode(tower, batch))

    async def call(self, work: Callable[[], T]) -> T:
        """Runs `work` on the device thread, between two batches; raises what it raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]  # None only with an error

        def execute() -> None:
            result: T | None = None
            failure: BaseException | None = None
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - belongs to the caller, not to this thread
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, failure)

        self._calls.put(execute)
        return await answer

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
