"""Two batches on the device: the second is closed as late as it can be."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from .simulation import Request, Run, Speed, make, play, simulate, version

SPEED = Speed(launch_s=0.01, item_s=0.01, token_s=0.0, best_batch=10)


def run_all(requests: list[Request], depth: int = 2) -> list[Run]:
    async def work() -> list[Run]:
        batcher, device = make(depth=depth)
        await play(batcher, requests)
        return device.runs

    return simulate(work)


def test_the_second_batch_is_closed_a_launch_before_the_first_ends():
    live = version("a", SPEED)
    long = Request(at=0, version=live, numbers=range(25))
    late = [Request(at=0.08, version=live, numbers=[100], deadline_s=0.3)]
    runs = run_all([long, *late])
    assert runs[1].closed == pytest.approx(0.11 - SPEED.launch_s, abs=1e-3)
    # What came 80 ms after the first was closed is still in the second.
    assert 100 in runs[1].numbers
    # The device had nothing to wait for.
    assert runs[1].began == pytest.approx(runs[0].ended)


def test_at_depth_one_the_next_batch_waits_for_the_end():
    live = version("a", SPEED)
    runs = run_all([Request(at=0, version=live, numbers=range(25))], depth=1)
    for before, after in itertools.pairwise(runs):
        assert after.closed == before.ended


def test_a_batch_that_takes_longer_than_predicted_holds_up_no_third():
    slow = Speed(launch_s=0.5, item_s=0.01, token_s=0.0)
    live = version("a", SPEED)
    live.encoder.speed = slow
    runs = run_all([Request(at=0, version=live, numbers=range(60))])
    assert sorted(n for run in runs for n in run.numbers) == list(range(60))


@settings(max_examples=100, deadline=None)
@given(arrivals=st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 30)), min_size=1, max_size=12))
def test_a_batch_is_closed_early_only_by_a_launch(arrivals):
    live = version("a", SPEED)
    first = 0
    requests = []
    for at, items in arrivals:
        requests.append(Request(at=at, version=live, numbers=range(first, first + items)))
        first += items
    runs = run_all(requests)
    arrived = {number: request.at for request in requests for number in request.numbers}
    for before, run in itertools.pairwise(runs):
        assert run.closed >= before.ended - SPEED.launch_s - 1e-3
        if max(arrived[number] for number in run.numbers) < before.ended - SPEED.launch_s:
            assert run.began == pytest.approx(before.ended, abs=1e-6), "the device idled"
