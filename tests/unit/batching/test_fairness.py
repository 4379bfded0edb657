"""Who waits for whom: queries for no long request, and nobody for ever."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import given, settings

from hotclip_server.batching.queue import AGED_EVERY, AGED_S
from hotclip_server.batching.ticket import Priority

from .simulation import Request, Run, Speed, make, play, simulate, version

SPEED = Speed(launch_s=0.004, item_s=0.02, token_s=0.0, best_batch=8)
BATCH_S = SPEED.seconds([10] * 8)


def run_all(requests: list[Request], **limits: int) -> list[Run]:
    async def work() -> list[Run]:
        batcher, device = make(**limits)
        await play(batcher, requests)
        return device.runs

    return simulate(work)


def runs_between(runs: list[Run], since: float, until: float) -> int:
    """Batches that were closed after one time and before another."""
    return sum(since < run.closed < until for run in runs)


LONG = st.fixed_dictionaries(
    {
        "at": st.floats(0, 1),
        "items": st.integers(1, 300),
        "bulk": st.booleans(),
        "deadline": st.one_of(st.none(), st.floats(50, 100)),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    longs=st.lists(LONG, min_size=1, max_size=4),
    queries=st.lists(st.floats(0, 4), min_size=1, max_size=4),
)
def test_a_query_waits_for_one_batch_of_each_long_request(longs, queries):
    live, numbers = version("a", SPEED), itertools.count()
    others = [
        Request(
            at=long["at"],
            version=live,
            numbers=[next(numbers) for _ in range(long["items"])],
            priority=Priority.BULK if long["bulk"] else Priority.INTERACTIVE,
            deadline_s=long["deadline"],
        )
        for long in longs
    ]
    asked = [Request(at=at, version=live, numbers=[next(numbers)]) for at in queries]
    runs = run_all(others + asked)
    for query in asked:
        own = next(run for run in runs if query.numbers[0] in run.numbers)
        interactive = sum(
            request.priority is Priority.INTERACTIVE and request.at <= query.at < request.ended
            for request in others
        )
        before = runs_between(runs, query.at, own.closed)
        # One is the turn of what has waited longest; other queries fit into their batches.
        assert before <= interactive + len(asked) + 1 + before // AGED_EVERY


def test_2000_bulk_images_delay_a_query_by_a_batch():
    live = version("a", SPEED)
    bulk = Request(at=0, version=live, numbers=range(2000), priority=Priority.BULK)
    asked = [Request(at=0.3 + 0.37 * n, version=live, numbers=[5000 + n]) for n in range(60)]
    run_all([bulk, *asked])
    alone_s = SPEED.seconds([10])
    waits = sorted(query.ended - query.at for query in asked)
    assert waits[len(waits) // 2] <= BATCH_S + alone_s
    assert waits[-1] <= 2 * BATCH_S + alone_s
    # And it costs the bulk request no more than the queries themselves take.
    assert bulk.ended <= 2000 / 8 * BATCH_S + 61 * alone_s


def test_1000_interactive_images_delay_a_query_by_a_batch():
    live = version("a", SPEED)
    long = Request(at=0, version=live, numbers=range(1000))
    asked = [Request(at=0.3 + 0.37 * n, version=live, numbers=[5000 + n]) for n in range(30)]
    run_all([long, *asked])
    assert max(query.ended - query.at for query in asked) <= 2 * BATCH_S + SPEED.seconds([10])


def test_two_long_requests_share_the_device():
    live = version("a", SPEED)
    first = Request(at=0, version=live, numbers=range(400))
    second = Request(at=0.5, version=live, numbers=range(1000, 1200))
    run_all([first, second])
    # The second has half of the device: 200 items take about as long as 400 do alone.
    alone_s = 200 / 8 * BATCH_S
    assert 1.8 * alone_s <= second.ended - second.at <= 2.2 * alone_s
    assert first.ended > second.ended


FLOOD = st.fixed_dictionaries(
    {
        "load": st.floats(0.7, 3),
        "items": st.integers(1, 4),
        "deadline": st.one_of(st.none(), st.floats(0.2, 1)),
    }
)
VICTIM = st.fixed_dictionaries(
    {
        "at": st.floats(0, 2),
        "items": st.integers(1, 40),
        "bulk": st.booleans(),
        "other_version": st.booleans(),
        "length": st.sampled_from([5, 10, 40]),
    }
)


@settings(max_examples=25, deadline=None)
@given(flood=FLOOD, victims=st.lists(VICTIM, min_size=1, max_size=4))
def test_nothing_starves(flood, victims):
    """A flood of urgent queries, more than the device can do, and requests that stand behind."""
    live, old, numbers = version("a", SPEED), version("b", SPEED), itertools.count()
    apart_s = flood["items"] * BATCH_S / 8 / flood["load"]
    floods = [
        Request(
            at=n * apart_s,
            version=live,
            numbers=[next(numbers) for _ in range(flood["items"])],
            deadline_s=flood["deadline"],
        )
        for n in range(int(12 / apart_s))
    ]
    waiting = [
        Request(
            at=victim["at"],
            version=old if victim["other_version"] else live,
            numbers=[next(numbers) for _ in range(victim["items"])],
            lengths=[victim["length"]] * victim["items"],
            priority=Priority.BULK if victim["bulk"] else Priority.INTERACTIVE,
        )
        for victim in victims
    ]
    requests = floods + waiting
    runs = run_all(requests)
    closed = {number: run.closed for run in runs for number in run.numbers}
    for request in waiting:
        assert request.rows is not None
        first, last = request.numbers[0], request.numbers[-1]
        for number in (first, last):
            older = sum(
                other.at <= request.at and closed.get(n, other.ended) > request.at + AGED_S
                for other in requests
                for n in other.numbers
            )
            older += number - first
            since = max(request.at + AGED_S, 0)
            assert runs_between(runs, since, closed[number]) <= AGED_EVERY * (older + 1)


def test_bulk_keeps_its_share_of_a_busy_device():
    """Bulk gets an eighth of the batches where queries would take all of them."""
    live = version("a", SPEED)
    bulk = Request(at=0, version=live, numbers=range(240), priority=Priority.BULK)
    flood = [
        Request(at=0.01 * n, version=live, numbers=[1000 + n], deadline_s=0.5) for n in range(6000)
    ]
    runs = run_all([bulk, *flood])
    during = [run for run in runs if AGED_S < run.closed < bulk.ended]
    share = sum(run.numbers[0] < 240 for run in during) / len(during)
    assert 1 / AGED_EVERY * 0.9 <= share <= 1 / AGED_EVERY * 1.5
    assert bulk.ended < 60


def test_within_a_class_the_earliest_deadline_is_first():
    live = version("a", Speed(best_batch=1))
    first = Request(at=0, version=live, numbers=[0])
    later = [
        Request(at=n / 1000, version=live, numbers=[n], deadline_s=deadline_s, priority=priority)
        for n, deadline_s, priority in (
            (1, 1.9, Priority.INTERACTIVE),
            (2, None, Priority.INTERACTIVE),
            (3, 0.5, Priority.BULK),
            (4, 0.4, Priority.BULK),
            (5, 0.9, Priority.INTERACTIVE),
            (6, 60.0, Priority.INTERACTIVE),
        )
    ]
    runs = run_all([first, *later])
    assert [run.numbers for run in runs] == [[0], [5], [1], [2], [6], [4], [3]]
