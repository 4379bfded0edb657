"""Who is refused at once: whom the queue has no room for, and who would be late."""

from __future__ import annotations

import asyncio
import itertools
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hotclip_server.batching.admission import LATER_TURNS, MOST_OF_IT
from hotclip_server.batching.ticket import Demand, Priority, Ticket
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import Unavailable

from .fakes import item
from .simulation import Request, Speed, make, play, simulate, version

SPEED = Speed(launch_s=0.0, item_s=0.01, token_s=0.0, best_batch=10)


def run_all(requests: list[Request], **limits: int) -> None:
    async def work() -> None:
        batcher, _ = make(**limits)
        await play(batcher, requests)

    simulate(work)


def refused(request: Request) -> bool:
    return isinstance(request.error, Unavailable)


@pytest.mark.parametrize(
    ("deadline_s", "admitted"),
    [(None, True), (1.3, True), (1.2, False), (0.9, False), (60.0, True)],
)
def test_a_request_that_would_be_late_is_refused(deadline_s, admitted):
    live = version("a", SPEED)
    # 100 requests of an item each: a second of work that comes before.
    before = [Request(at=0.0, version=live, numbers=[n], deadline_s=1.5) for n in range(100)]
    late = Request(
        at=0.001,
        version=live,
        numbers=[1000],
        deadline_s=deadline_s,
        priority=Priority.BULK,
    )
    run_all([*before, late])
    assert refused(late) is not admitted
    if not admitted:
        assert isinstance(late.error, Unavailable)
        assert late.error.reason == "WAIT_TOO_LONG"
        # What is late in four fifths of the time.
        expected = 1.01 - 0.8 * late.deadline_s
        assert late.error.retry_after_s == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("items", [1, 10, 24, 100])
def test_under_overload_as_much_is_done_in_time_as_the_device_can(items):
    live = version("a", SPEED)
    per_s = 100 / items
    chance = random.Random(0)
    arrivals = itertools.accumulate(chance.expovariate(2 * per_s) for _ in range(400))
    numbers = itertools.count()
    requests = [
        Request(
            at=at,
            version=live,
            numbers=[next(numbers) for _ in range(items)],
            deadline_s=max(0.6, 8 / per_s),
        )
        for at in arrivals
    ]
    run_all(requests)
    done = [one for one in requests if one.error is None and one.ended <= one.deadline]
    refusals = [one for one in requests if refused(one)]
    span_s = requests[-1].at + requests[-1].deadline_s
    # Twice as much comes as can be done; what is admitted and late is lost work.
    assert len(done) >= 0.85 * span_s * per_s
    assert len(done) + len(refusals) >= 0.9 * len(requests)


def test_only_what_stands_before_counts():
    live = version("a", SPEED)
    bulk = Request(at=0, version=live, numbers=range(1000), priority=Priority.BULK)
    long = Request(at=0.01, version=live, numbers=range(1000, 2000))
    query = Request(at=0.02, version=live, numbers=[3000], deadline_s=0.5)
    bulky = Request(at=0.03, version=live, numbers=[3001], deadline_s=5, priority=Priority.BULK)
    run_all([bulk, long, query, bulky])
    # Ten seconds of bulk and all but a batch of the long request stand behind a query.
    assert query.error is None
    assert query.ended < query.at + 0.5
    assert refused(bulky)


def test_an_urgent_request_stands_before_those_with_time():
    live = version("a", SPEED)
    before = [Request(at=0.0, version=live, numbers=[n]) for n in range(100)]
    urgent = Request(at=0.001, version=live, numbers=[1000], deadline_s=0.3)
    run_all([*before, urgent])
    assert urgent.error is None


def test_what_takes_longer_than_its_deadline_on_an_idle_server_is_tried():
    live = version("a", SPEED)
    long = Request(at=0, version=live, numbers=range(1000), deadline_s=1)
    run_all([long])
    assert not refused(long)


def test_requests_that_are_still_being_prepared_count():
    """Nothing is put yet, but what was admitted will come first."""
    live = version("a", SPEED)

    async def hold(_ticket: Ticket, _part: range) -> None:
        await asyncio.sleep(100)

    async def work() -> None:
        batcher, _ = make()
        demands = [Demand(Tower.TEXT, 10, 80)] * 100
        first = asyncio.create_task(
            batcher.run(live, demands, hold, deadline=None, priority=Priority.INTERACTIVE)
        )
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await batcher.encode(live, [item(1)], deadline=0.5, priority=Priority.BULK)
        first.cancel()
        await asyncio.wait([first])
        rows = await batcher.encode(live, [item(1)], deadline=0.5, priority=Priority.BULK)
        assert int(rows[0][0]) == 1

    simulate(work)


SHAPES = st.fixed_dictionaries(
    {
        "at": st.floats(0, 1),
        "items": st.integers(1, 60),
        "bulk": st.booleans(),
        "deadline": st.one_of(st.none(), st.floats(0.01, 3)),
    }
)


@settings(max_examples=150, deadline=None)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=15), budget=st.integers(20, 300))
def test_refused_only_if_late_or_without_room(shapes, budget):
    live, numbers = version("a", SPEED), itertools.count()
    requests = [
        Request(
            at=shape["at"],
            version=live,
            numbers=[next(numbers) for _ in range(shape["items"])],
            priority=Priority.BULK if shape["bulk"] else Priority.INTERACTIVE,
            deadline_s=shape["deadline"],
        )
        for shape in shapes
    ]
    run_all(requests, items=budget)
    for request in requests:
        others = [
            other
            for other in requests
            if other is not request and other.at <= request.at <= other.ended
        ]
        waiting = sum(len(other.numbers) for other in others)
        if refused(request):
            # What is left of the others is no more than all of it, and what may come before a
            # request's later turns as much again.
            no_room = waiting + len(request.numbers) > budget
            times = LATER_TURNS if len(request.numbers) > SPEED.best_batch else 1
            predicted_s = SPEED.item_s * (times * waiting + len(request.numbers))
            late = request.deadline_s is not None and predicted_s > MOST_OF_IT * request.deadline_s
            assert no_room or late
