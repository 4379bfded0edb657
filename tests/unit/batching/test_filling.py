"""Which lengths, classes and rounds run together."""

from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import given, settings

from hotclip_server.batching.ticket import Priority

from .simulation import Request, Run, Speed, make, play, simulate, version


def run_all(requests: list[Request]) -> tuple[list[Run], float]:
    """The batches, and what share of their tokens was padding."""

    async def work() -> tuple[list[Run], float]:
        batcher, device = make()
        await play(batcher, requests)
        return device.runs, batcher.figures.padding_share

    return simulate(work)


def test_short_texts_do_not_pay_for_a_long_one():
    live = version("a", Speed(launch_s=0.002, token_s=0.001, best_batch=8))
    lengths = [10] * 8 + [70] + [10] * 8
    runs, _ = run_all([Request(at=0, version=live, numbers=range(17), lengths=lengths)])
    assert [run.lengths for run in runs if 70 in run.lengths] == [[70]]


def test_lengths_stay_apart_where_padding_costs_more_than_a_launch():
    live = version("a", Speed(launch_s=0.002, token_s=0.0001, best_batch=64))
    lengths = [10] * 8 + [70]
    runs, _ = run_all([Request(at=0, version=live, numbers=range(9), lengths=lengths)])
    assert sorted(run.lengths for run in runs) == [[10] * 8, [70]]


def test_lengths_join_where_a_launch_costs_more_than_the_padding():
    live = version("a", Speed(launch_s=0.5, token_s=0.0001, best_batch=64))
    lengths = [10] * 3 + [70] + [30] * 3
    runs, _ = run_all([Request(at=0, version=live, numbers=range(7), lengths=lengths)])
    assert len(runs) == 1


def test_an_engine_that_does_not_pad_takes_all_lengths_together():
    live = version("a", Speed(launch_s=0.002, token_s=0.001, best_batch=8, padded=False))
    lengths = [10, 70, 3, 40, 10, 70]
    runs, padding = run_all([Request(at=0, version=live, numbers=range(6), lengths=lengths)])
    # As many tokens as 8 texts of 10 have.
    assert [sum(run.lengths) for run in runs] == [80, 53, 70]
    assert padding == 0


def test_padding_is_counted():
    live = version("a", Speed(launch_s=0.5, token_s=0.0001, best_batch=64))
    _, padding = run_all([Request(at=0, version=live, numbers=range(2), lengths=[10, 30])])
    assert padding == 20 / 60


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    launch_s=st.floats(0.0005, 0.02),
    best_batch=st.sampled_from([4, 8, 32]),
)
def test_mixed_lengths_take_little_more_than_sorted_ones(seed, launch_s, best_batch):
    """Against the batches that one would make who has all items at hand, by length."""
    speed = Speed(launch_s=launch_s, token_s=0.0005, best_batch=best_batch)
    chosen = random.Random(seed)
    lengths = [chosen.choice((6, 9, 10, 11, 14, 20, 60, 77)) for _ in range(300)]
    live = version("a", speed)
    runs, _ = run_all([Request(at=0, version=live, numbers=range(300), lengths=lengths)])
    took_s = runs[-1].ended
    full_s = speed.seconds([10] * best_batch)
    ideal_s, batch = 0.0, []
    for length in sorted(lengths):
        if batch and speed.seconds([*batch, length]) > full_s:
            ideal_s += speed.seconds(batch)
            batch = []
        batch.append(length)
    ideal_s += speed.seconds(batch)
    assert took_s <= 1.2 * ideal_s + full_s


def test_bulk_rides_along_for_no_longer_than_a_launch():
    live = version("a", Speed(launch_s=0.04, item_s=0.01, token_s=0.0, best_batch=20))
    busy = Request(at=0, version=live, numbers=[0])
    bulk = Request(at=0.001, version=live, numbers=range(100, 200), priority=Priority.BULK)
    query = Request(at=0.002, version=live, numbers=[1])
    runs, _ = run_all([busy, bulk, query])
    assert runs[1].numbers[0] == 1
    # Four take as long as a launch, give or take rounding.
    assert len(runs[1].numbers) in (1 + 3, 1 + 4)
    assert len(runs[2].numbers) == 20


def test_the_most_urgent_item_is_in_the_next_batch():
    live = version("a", Speed(launch_s=0.002, token_s=0.001, best_batch=8))
    busy = Request(at=0, version=live, numbers=[0])
    many = Request(at=0.001, version=live, numbers=range(100, 200))
    urgent = Request(at=0.002, version=live, numbers=[1], lengths=[77], deadline_s=0.5)
    runs, _ = run_all([busy, many, urgent])
    assert 1 in runs[1].numbers
