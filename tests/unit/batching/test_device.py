"""The device thread and the watchdog."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from hotclip_server.batching.device import DeviceThread
from hotclip_server.batching.isolate import run_isolated
from hotclip_server.batching.watchdog import Watchdog
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.errors import DeviceLost


async def test_calls_run_in_order_on_one_thread():
    device = DeviceThread()
    device.start()
    threads: list[str] = []
    order: list[int] = []

    def work(number: int) -> int:
        threads.append(threading.current_thread().name)
        order.append(number)
        return number

    calls = [device.call(lambda n=n: work(n)) for n in range(20)]
    assert await asyncio.gather(*calls) == list(range(20))
    assert order == list(range(20))
    assert set(threads) == {"hotclip-device"}
    assert device.stop(5)


async def test_an_error_is_the_callers():
    device = DeviceThread()
    device.start()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await device.call(fail)
    assert await device.call(lambda: 1) == 1
    assert device.stop(5)


async def test_a_cancelled_caller_leaves_the_thread_working():
    device = DeviceThread()
    device.start()
    gate = threading.Event()
    slow = asyncio.create_task(device.call(gate.wait))
    await asyncio.sleep(0.01)
    slow.cancel()
    gate.set()
    assert await device.call(lambda: 1) == 1
    assert device.stop(5)


async def test_a_hanging_call_is_left_behind():
    device = DeviceThread()
    device.start()
    gate = threading.Event()
    call = asyncio.create_task(device.call(gate.wait))
    await asyncio.sleep(0.01)
    assert not device.stop(0.05)
    gate.set()
    assert await call
    assert device.stop(5)


class Slow:
    """Enqueues at once; each batch ends when the test says so."""

    def __init__(self) -> None:
        self.submitted: list[int] = []
        self.ends: list[threading.Event] = []
        self.error: Exception | None = None
        self._begun = threading.Semaphore(0)

    def wait_for(self, batches: int) -> None:
        """Blocks until so many more were enqueued."""
        for _ in range(batches):
            assert self._begun.acquire(timeout=5)

    def submit(self, tower: Tower, batch: Sequence[Prepared]) -> Slow:
        if self.error is not None:
            raise self.error
        self.submitted.append(len(batch))
        self.ends.append(threading.Event())
        self._begun.release()
        return self

    def wait(self) -> NDArray[np.float32]:
        assert self.ends[-1].wait(5)
        assert threading.current_thread().name == "hotclip-device-end"
        return np.zeros((self.submitted[-1], 2), np.float32)


def batch_of(count: int) -> list[Prepared]:
    return [Prepared(Tower.TEXT, np.arange(3))] * count


async def test_the_next_batch_is_enqueued_before_the_first_is_done():
    device, encoder = DeviceThread(depth=2), Slow()
    device.start()
    first = asyncio.create_task(device.run(encoder, Tower.TEXT, batch_of(2)))
    second = asyncio.create_task(device.run(encoder, Tower.TEXT, batch_of(3)))
    await asyncio.to_thread(encoder.wait_for, 2)
    assert await device.call(lambda: 1) == 1  # the device thread is free
    assert not first.done()
    for end in encoder.ends:
        end.set()
    await asyncio.gather(first, second)
    assert encoder.submitted == [2, 3]
    assert device.stop(5)


async def test_a_batch_that_fails_is_told_and_the_next_goes_on():
    device, encoder = DeviceThread(depth=2), Slow()
    device.start()
    encoder.error = ValueError("too long")
    with pytest.raises(ValueError, match="too long"):
        await device.run(encoder, Tower.TEXT, batch_of(1))
    assert not device.lost
    encoder.error = None
    running = asyncio.create_task(device.run(encoder, Tower.TEXT, batch_of(1)))
    await asyncio.to_thread(encoder.wait_for, 1)
    encoder.ends[0].set()
    assert (await running).shape == (1, 2)
    assert device.stop(5)


async def test_a_lost_device_is_noticed():
    device, encoder = DeviceThread(depth=2), Slow()
    device.start()
    encoder.error = DeviceLost()
    rows = await run_isolated(device, encoder, Tower.TEXT, batch_of(4))
    assert [type(row) for row in rows] == [DeviceLost] * 4
    assert device.lost
    assert device.stop(5)


async def test_stopping_waits_for_what_was_enqueued():
    device, encoder = DeviceThread(depth=2), Slow()
    device.start()
    running = asyncio.create_task(device.run(encoder, Tower.TEXT, batch_of(1)))
    await asyncio.to_thread(encoder.wait_for, 1)
    assert not await asyncio.to_thread(device.stop, 0.05)
    encoder.ends[0].set()
    assert (await running).shape == (1, 2)
    assert await asyncio.to_thread(device.stop, 5)


def test_the_watchdog_reports_changes_once():
    stalled = [0.0]
    changes: list[bool] = []
    watchdog = Watchdog(lambda: stalled[0], 10, changes.append)
    for seconds in (0, 9, 11, 12, 0, 0):
        stalled[0] = seconds
        watchdog.look()
    assert changes == [False, True]
