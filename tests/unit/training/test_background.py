"""Threads that give way, and what they get in any case."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from hotclip_server.training.background import (
    FLOOR,
    MOST_NICE,
    NICE,
    WINDOW_S,
    Background,
    Ticker,
    cpu_seconds,
    may_leave_idle,
    threads_of,
    workers_begun,
)
from hotclip_server.training.jobs import use_every_worker

pytestmark = pytest.mark.skipif(
    not hasattr(os, "SCHED_IDLE"), reason="this system has no idle class"
)
OWN = os.getpriority(os.PRIO_PROCESS, 0)


@pytest.fixture
def spinning() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(not may_leave_idle(), reason="this user may not leave the idle class")
def test_idle_while_it_has_its_share_and_usual_when_it_starves(
    spinning: subprocess.Popen[bytes],
) -> None:
    now, used = 0.0, 5.0
    background = Background(
        lambda: threads_of(spinning.pid), clock=lambda: now, used_s=lambda _: used
    )

    def scheduled() -> int:
        background.tick()
        return os.sched_getscheduler(spinning.pid)

    assert scheduled() == os.SCHED_IDLE
    for _ in range(100):  # just its share
        now, used = now + 1.0, used + 1.01 * FLOOR
        assert scheduled() == os.SCHED_IDLE
    now += 0.9 * WINDOW_S  # a moment without is no matter
    assert scheduled() == os.SCHED_IDLE
    now += 3600.0
    assert scheduled() == os.SCHED_OTHER
    # Until it had what it was not given, of the window alone: it may have had nothing to do.
    now, used = now + 1.0, used + 0.9 * FLOOR * (WINDOW_S + 1.0)
    assert scheduled() == os.SCHED_OTHER
    now, used = now + 1.0, used + 0.2 * FLOOR * (WINDOW_S + 1.0) + FLOOR
    assert scheduled() == os.SCHED_IDLE
    assert os.getpriority(os.PRIO_PROCESS, spinning.pid) == OWN
    background.release()
    assert os.sched_getscheduler(spinning.pid) == os.SCHED_OTHER


@pytest.mark.skipif(not may_leave_idle(), reason="this user may not leave the idle class")
def test_its_weight_is_low_until_it_is_released_where_nobody_else_uses_it(
    spinning: subprocess.Popen[bytes],
) -> None:
    now = 0.0
    background = Background(
        lambda: threads_of(spinning.pid), lowly=True, clock=lambda: now, used_s=lambda _: 0.0
    )
    assert os.sched_getscheduler(spinning.pid) == os.SCHED_IDLE
    now += WINDOW_S
    background.tick()
    assert os.sched_getscheduler(spinning.pid) == os.SCHED_OTHER
    assert os.getpriority(os.PRIO_PROCESS, spinning.pid) == min(MOST_NICE, OWN + NICE)
    background.release()
    assert os.getpriority(os.PRIO_PROCESS, spinning.pid) == OWN
    assert os.sched_getscheduler(spinning.pid) == os.SCHED_OTHER


def test_what_a_thread_has_used_is_counted(spinning: subprocess.Popen[bytes]) -> None:
    while cpu_seconds(spinning.pid) < 0.1:
        time.sleep(0.01)
    spinning.kill()
    spinning.wait()
    assert cpu_seconds(spinning.pid) == 0


def test_without_the_right_to_come_back_its_weight_is_low(
    spinning: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotclip_server.training.background.may_leave_idle", lambda: False)
    Background(lambda: threads_of(spinning.pid)).release()
    assert os.getpriority(os.PRIO_PROCESS, spinning.pid) == min(MOST_NICE, OWN + NICE)
    assert os.sched_getscheduler(spinning.pid) != os.SCHED_IDLE


def test_only_the_threads_that_the_work_begins_are_found() -> None:
    ends = threading.Event()
    others = threading.Thread(target=ends.wait)
    others.start()
    found: list[int] = []

    def begin() -> None:
        thread = threading.Thread(target=ends.wait)
        thread.start()
        found.append(thread.native_id or 0)

    assert workers_begun(begin) == found
    assert workers_begun(lambda: None) == []
    ends.set()
    others.join()


def test_the_workers_of_openmp_are_found_once() -> None:
    found: list[list[int]] = []
    before = torch.get_num_threads()

    def compute() -> None:
        torch.set_num_threads(2)
        found.append(workers_begun(use_every_worker))
        found.append(workers_begun(use_every_worker))

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert [len(workers) for workers in found] == [1, 0]


def test_what_has_ended_is_no_matter(spinning: subprocess.Popen[bytes]) -> None:
    with Ticker(Background(lambda: [spinning.pid])):
        spinning.kill()
        spinning.wait()
    assert threads_of(spinning.pid) == []
