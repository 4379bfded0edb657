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
    NICE,
    WINDOW_S,
    Background,
    Ticker,
    may_leave_idle,
    threads_of,
    workers_begun,
)
from hotclip_server.training.jobs import use_every_worker

pytestmark = pytest.mark.skipif(
    not hasattr(os, "SCHED_IDLE"), reason="this system has no idle class"
)


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
    now = [0.0]
    background = Background(lambda: threads_of(spinning.pid), clock=lambda: now[0])
    assert os.sched_getscheduler(spinning.pid) == os.SCHED_IDLE
    # It runs, but hours pass: that is less than its share.
    now[0] += 3600.0
    background.tick()
    assert not background.idle
    assert os.sched_getscheduler(spinning.pid) == os.SCHED_OTHER
    # Once it had its share again it gives way again.
    used = time.monotonic()
    while time.monotonic() - used < 0.5:
        time.sleep(0.05)
    now[0] += WINDOW_S
    background.tick()
    if background.idle:  # else the machine gave it less than that in half a second
        assert os.sched_getscheduler(spinning.pid) == os.SCHED_IDLE
    background.release()
    assert os.sched_getscheduler(spinning.pid) == os.SCHED_OTHER
    assert 0 < FLOOR < 0.5


def test_without_the_right_to_come_back_its_weight_is_low(
    spinning: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotclip_server.training.background.may_leave_idle", lambda: False)
    Background(lambda: threads_of(spinning.pid)).release()
    assert os.getpriority(os.PRIO_PROCESS, spinning.pid) == NICE
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
