"""Who is refused because decoding would make it late."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from hotclip_server.batching.ticket import Priority
from hotclip_server.contents import Content
from hotclip_server.errors import Unavailable
from hotclip_server.preparing import PrepareLoad

QUERY, BULK = Priority
NOW = [100.0]
"""Seconds on the clock, which a test may turn on."""
IMAGE = b"." * 1000
"""Takes 10 ms."""


@pytest.fixture
def load() -> PrepareLoad:
    """Of two threads; each request has three tasks in line."""
    made = PrepareLoad(2, 3, lambda: NOW[0])
    contents: list[Content] = [IMAGE, IMAGE * 3]
    with made.booked(contents, BULK, None) as booking:
        for at, seconds in ((0, 0.01), (1, 0.03)):
            made.done(booking, BULK, [at], seconds)
    return made


def refusal(
    load: PrepareLoad, items: int, within_s: float, priority: Priority = QUERY
) -> Unavailable | None:
    try:
        with load.booked([IMAGE] * items, priority, NOW[0] + within_s):
            return None
    except Unavailable as error:
        return error


def test_what_would_be_late_because_of_others_is_refused(load: PrepareLoad) -> None:
    with ExitStack() as others:
        bookings = [others.enter_context(load.booked([IMAGE], QUERY, None)) for _ in range(40)]
        # 0.2 s of the others on two threads, and 10 ms of its own, in four fifths of the time.
        assert refusal(load, 1, 0.27) is None
        assert refusal(load, 1, 0.25) is not None
        late = refusal(load, 1, 0.125)
        assert late is not None
        assert late.reason == "WAIT_TOO_LONG"
        assert late.retry_after_s == pytest.approx(0.11, abs=1e-3)
        for booking in bookings[:30]:
            load.done(booking, QUERY, [0], 0.01)
        assert refusal(load, 1, 0.1) is None
    assert refusal(load, 1, 0.014) is None


def test_of_a_long_request_only_what_is_in_line_counts(load: PrepareLoad) -> None:
    with load.booked([IMAGE] * 1000, QUERY, None):  # five seconds
        assert refusal(load, 1, 0.035) is None
        # While so many of another are prepared, as much again may come.
        assert refusal(load, 30, 0.57) is None
        assert refusal(load, 30, 0.55) is not None


def test_bulk_stands_behind(load: PrepareLoad) -> None:
    with load.booked([IMAGE], QUERY, None), ExitStack() as bulk:
        for _ in range(100):
            bulk.enter_context(load.booked([IMAGE] * 10, BULK, None))
        assert refusal(load, 1, 0.02) is None
        assert refusal(load, 1, 0.5, BULK) is not None
        assert refusal(load, 1, 2.0, BULK) is None


def test_what_is_too_long_by_itself_is_tried(load: PrepareLoad) -> None:
    assert refusal(load, 1000, 0.1) is None


def test_nothing_is_refused_before_anything_is_known() -> None:
    load = PrepareLoad(2, 3, lambda: NOW[0])
    with load.booked([IMAGE] * 1000, QUERY, None):
        assert refusal(load, 1, 1e-6) is None


@pytest.mark.parametrize("prepared", [20, 10])
def test_what_takes_the_processor_from_the_pool_is_learnt(prepared: int, load: PrepareLoad) -> None:
    contents = [IMAGE] * 20
    for _ in range(60):  # predicted to take 0.1 s, ends after 0.25 s, or is given up then
        with load.booked(contents, QUERY, NOW[0] + 60) as booking:
            NOW[0] += 0.25
            load.done(booking, QUERY, range(prepared), 0.01 * prepared)
    for _ in range(60):  # of whom goes away early nothing is learnt
        with load.booked(contents, QUERY, NOW[0] + 60):
            NOW[0] += 0.01
    with load.booked([IMAGE] * 20, QUERY, None):
        assert refusal(load, 20, 0.85) is not None
        assert refusal(load, 20, 1.05) is None
