"""Background work waits for requests, and never for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hotclip_server.pace import CHECK_S, LONGEST_PIECE_S, PATIENCE, Pace


class Clock:
    """Time that passes when somebody sleeps or works."""

    def __init__(self, pressure: Callable[[float], float] = lambda now: 0.0) -> None:
        self.now = 100.0
        self.slept = 0.0
        self.pace = Pace(lambda: self.now, self.sleep)
        self.pace.follow(lambda: pressure(self.now))

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= CHECK_S
        self.now += seconds
        self.slept += seconds

    def work(self, pieces: int, seconds: float) -> None:
        for _ in range(pieces):
            self.now += seconds
            self.pace()


def test_nobody_waits_for_nobody() -> None:
    clock = Clock()
    clock.work(100, 0.002)
    assert clock.slept == 0


def test_it_goes_on_as_soon_as_nobody_waits() -> None:
    clock = Clock(lambda now: float(now < 100.02))
    clock.work(3, 0.004)
    assert 0.011 <= clock.slept < 0.018


def test_however_much_is_asked_it_keeps_its_share() -> None:
    clock = Clock(lambda now: 7.0)
    clock.work(50, 0.002)
    share = 50 * 0.002 / (clock.now - 100)
    assert abs(share - 1 / (1 + PATIENCE)) < 0.01


def test_small_pieces_add_up() -> None:
    clock = Clock(lambda now: 7.0)
    clock.work(1000, CHECK_S / 10)
    share = 1000 * CHECK_S / 10 / (clock.now - 100)
    assert abs(share - 1 / (1 + PATIENCE)) < 0.02


def test_the_time_between_two_loads_is_no_work() -> None:
    clock = Clock(lambda now: 7.0)
    clock.work(1, 0.002)
    clock.slept, clock.now = 0.0, clock.now + 3600
    clock.work(1, 0.002)
    assert clock.slept <= PATIENCE * LONGEST_PIECE_S + CHECK_S


def test_threads_do_not_count_the_work_of_others() -> None:
    clock = Clock(lambda now: 7.0)
    clock.work(1, 0.002)
    clock.now += 0.04  # work of this thread
    clock.slept = 0.0
    other = threading.Thread(target=clock.pace)
    other.start()
    other.join()
    assert clock.slept <= PATIENCE * CHECK_S + CHECK_S
