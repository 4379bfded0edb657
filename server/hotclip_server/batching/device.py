"""The device thread: the only one that runs encoders, which may divide a batch among others."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hotclip_server.encoding.overlapping import Overlapping
from hotclip_server.encoding.protocol import Encoder, Prepared, Tower
from hotclip_server.errors import DeviceLost, HotclipError

T = TypeVar("T")
Calls = SimpleQueue[Callable[[], None] | None]

log = logging.getLogger(__name__)


class DeviceThread:
    """Runs calls one after the other on one thread; `start` starts it.

    At a depth of 2 it does not wait for a batch that an encoder only enqueues: a second thread
    does, while this one enqueues the next. Both are daemons: an encoder that hangs must not keep
    the process from ending.

    Args:
        depth: Batches that it takes at a time; more than one waits here for its turn.
        is_lost: Asked after an error, on the thread that had it: whether the device fails every
            call from now on.
    """

    def __init__(self, depth: int = 1, is_lost: Callable[[], bool] = lambda: False) -> None:
        self.depth = depth
        self._is_lost = is_lost
        self.lost = False
        """Whether the device has failed for good."""
        self._calls: Calls = SimpleQueue()
        self._ends: Calls = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Starts the threads."""
        self._start("hotclip-device", self._calls)
        if self.depth > 1:
            self._start("hotclip-device-end", self._ends)

    def stop(self, timeout_s: float) -> bool:
        """Lets running calls end; blocks up to `timeout_s`.

        Returns:
            Whether the threads have ended.
        """
        self._calls.put(lambda: self._ends.put(None))  # behind the batches that it still enqueues
        self._calls.put(None)
        ends = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    async def run(
        self, encoder: Encoder, tower: Tower, batch: Sequence[Prepared]
    ) -> NDArray[np.float32]:
        """Runs one batch; raises what the encoder raises."""
        if self.depth == 1 or not isinstance(encoder, Overlapping):
            return await self.call(lambda: encoder.encode(tower, batch))
        answer: _Answer[NDArray[np.float32]] = _Answer(self._told)

        def enqueue() -> None:
            try:
                pending = encoder.submit(tower, batch)
            except Exception as error:  # noqa: BLE001 - belongs to the caller
                answer.settle(None, error)
            else:
                self._ends.put(lambda: answer.run(pending.wait))

        self._calls.put(enqueue)
        return await answer.future

    async def call(self, work: Callable[[], T]) -> T:
        """Runs `work` on the device thread, between two batches; raises what it raises."""
        answer: _Answer[T] = _Answer(self._told)
        self._calls.put(lambda: answer.run(work))
        return await answer.future

    def _start(self, name: str, calls: Calls) -> None:
        def work() -> None:
            while (call := calls.get()) is not None:
                call()
                call = None  # its items may lie in memory that others wait for

        self._threads.append(threading.Thread(target=work, name=name, daemon=True))
        self._threads[-1].start()

    def _told(self, error: Exception) -> Exception:
        """What the caller is told of an error."""
        told = error
        if not isinstance(error, HotclipError) and (self.lost or self._is_lost()):
            told = DeviceLost()
        if isinstance(told, DeviceLost) and not self.lost:
            self.lost = True
            log.critical("the device has failed; this process can't use it", exc_info=error)
        return told


class _Answer(Generic[T]):
    """A future of the running loop that another thread settles.

    Args:
        told: What the caller is told of an error; asked on that thread.
    """

    def __init__(self, told: Callable[[Exception], Exception]) -> None:
        self._told = told
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()

    def run(self, work: Callable[[], T]) -> None:
        """Settles with what comes of `work`."""
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - belongs to the caller, not to this thread
            self.settle(None, error)
        else:
            self.settle(result, None)

    def settle(self, result: T | None, error: Exception | None) -> None:
        """Wakes whoever awaits the future."""
        if error is not None:
            error = self._told(error)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._set, result, error)

    def _set(self, result: T | None, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)  # type: ignore[arg-type]  # None only with an error
