"""What a job gets of the time, and whom it lets go first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from hotclip_server.jobs.yielding import CHECK_S, PATIENCE, SAVED_S, ProcessorTime, Yielding


class World:
    """Time that passes by work and by sleep, and requests that come by a timetable."""

    def __init__(self, busy: Callable[[float], bool]) -> None:
        self.now = 0.0
        self.computed = 0.0
        self.beside = 0.0
        """Seconds that it worked while somebody waited."""
        self.looks = 0
        self._busy = busy
        self.yielding = Yielding(lambda: busy(self.now), lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 0.0002  # it never wakes in time

    def look(self) -> None:
        self.looks += 1

    def work(self, seconds: float, pushed_aside: float = 0.0) -> None:
        self.beside += seconds if self._busy(self.now) else 0.0
        self.computed += seconds
        self.now += seconds + pushed_aside
        self.yielding(self.look)


def always(_: float) -> bool:
    return True


@pytest.mark.parametrize("piece", [0.0003, 0.02, 0.5])
def test_where_somebody_always_waits_a_job_keeps_a_tenth(piece: float) -> None:
    world = World(always)
    while world.computed < max(1.0, 5 * piece):
        world.work(piece)
    assert world.computed / world.now == pytest.approx(1 / (1 + PATIENCE), rel=0.02)
    assert world.yielding.yielded_s == pytest.approx(world.now - world.computed)


def test_where_there_are_gaps_it_runs_in_them_alone() -> None:
    # Busy for 0.8 s of every second, which no piece of work would be patient enough for.
    world = World(lambda now: now % 1 > 0.2)
    while world.now < 100.0:
        world.work(0.001)
    assert world.beside == 0
    assert world.computed > 0.15 * world.now


def test_what_is_saved_up_ends() -> None:
    busy = False
    world = World(lambda _: busy)
    for _ in range(1000):
        world.work(0.1)
    assert world.yielding.yielded_s == 0
    assert world.looks == 0
    busy = True
    world.work(0.01)
    assert world.yielding.yielded_s == pytest.approx(SAVED_S, abs=2 * CHECK_S)
    world.work(0.01)
    assert world.yielding.yielded_s == pytest.approx(SAVED_S + 0.01 * PATIENCE, abs=2 * CHECK_S)


def test_a_long_piece_is_followed_by_a_long_wait() -> None:
    world = World(always)
    world.work(1.0)
    assert world.yielding.yielded_s == pytest.approx(PATIENCE, abs=2 * CHECK_S)


def test_who_is_pushed_aside_waits_already() -> None:
    world = World(always)
    world.yielding.count_processor_time(lambda: world.computed)
    for _ in range(20):
        world.work(0.01, pushed_aside=0.0101 * PATIENCE)
    assert world.yielding.yielded_s == 0
    for _ in range(200):
        world.work(0.01, pushed_aside=0.03)
    assert world.computed / world.now == pytest.approx(1 / (1 + PATIENCE), rel=0.02)


def test_what_is_asked_meanwhile_may_end_it() -> None:
    world = World(always)
    world.now += 1.0

    def refuse() -> None:
        raise KeyError("it is to end")

    with pytest.raises(KeyError):
        world.yielding(refuse)
    assert world.now == 1.0


def test_the_time_of_all_threads_that_ask_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    own = threading.local()
    monkeypatch.setattr(time, "thread_time", lambda: own.computed)
    clock = ProcessorTime()

    def compute(before: float) -> None:
        for computed in (before, before + 2.0, before + 2.5):
            own.computed = computed
            clock()

    for before in (0.0, 100.0):
        thread = threading.Thread(target=compute, args=(before,))
        thread.start()
        thread.join()
    own.computed = 7.0
    assert clock() == 5.0
    own.computed = 8.0
    assert clock() == 6.0
