"""The device thread and the watchdog."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from hotclip_server.batching.device import DeviceThread
from hotclip_server.batching.watchdog import Watchdog


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
    started = time.monotonic()
    assert not device.stop(0.05)
    assert time.monotonic() - started < 2
    gate.set()
    assert await call
    assert device.stop(5)


def test_the_watchdog_reports_changes_once():
    stalled = [0.0]
    changes: list[bool] = []
    watchdog = Watchdog(lambda: stalled[0], 10, changes.append)
    for seconds in (0, 9, 11, 12, 0, 0):
        stalled[0] = seconds
        watchdog.look()
    assert changes == [False, True]
