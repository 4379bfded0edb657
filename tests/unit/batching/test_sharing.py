"""The same item asked for twice at a time is computed once."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from hotclip_server.batching.ticket import Priority
from hotclip_server.encoding.protocol import Tower

from .fakes import number_of
from .simulation import Request, Run, Speed, make, play, simulate, version

SHAPES = st.fixed_dictionaries(
    {
        "at": st.floats(0, 0.3),
        "numbers": st.lists(st.integers(0, 5), min_size=1, max_size=6),
        "bulk": st.booleans(),
        "version": st.integers(0, 1),
        "cancel": st.one_of(st.none(), st.floats(0, 0.3)),
        "deadline": st.one_of(st.none(), st.floats(0.01, 0.5)),
    }
)


def run_all(requests: list[Request]) -> tuple[list[Run], int]:
    async def work() -> tuple[list[Run], int]:
        batcher, device = make()
        await play(batcher, requests)
        return device.runs, batcher.figures.shared

    return simulate(work)


@settings(max_examples=150, deadline=None)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=12), best_batch=st.integers(1, 4))
def test_no_item_is_computed_twice_at_a_time(shapes, best_batch):
    versions = [version(name, Speed(best_batch=best_batch)) for name in "ab"]
    requests = [
        Request(
            at=shape["at"],
            version=versions[shape["version"]],
            numbers=shape["numbers"],
            priority=Priority.BULK if shape["bulk"] else Priority.INTERACTIVE,
            cancel_s=shape["cancel"],
            deadline_s=shape["deadline"],
        )
        for shape in shapes
    ]
    runs, _ = run_all(requests)
    for request in requests:
        if request.rows is not None:
            assert [int(row[0]) for row in request.rows] == list(request.numbers)
    for index, run in enumerate(runs):
        assert len(run.numbers) == len(set(run.numbers))
        for number in run.numbers:
            earlier = [
                other
                for other in runs[:index]
                if other.encoder is run.encoder and number in other.numbers
            ]
            # Computed again only for somebody who came when the one before had ended.
            assert not earlier or any(
                request.at >= earlier[-1].ended
                for request in requests
                if number in request.numbers and request.version.encoder is run.encoder
            )


def test_a_thousand_callers_of_one_query_cost_one_item():
    live = version("a", Speed())
    busy = Request(at=0, version=live, numbers=[1])
    requests = [Request(at=0.001, version=live, numbers=[7, 7]) for _ in range(1000)]
    runs, shared = run_all([busy, *requests])
    assert [run.numbers for run in runs] == [[1], [7]]
    assert shared == 1999
    assert all(int(row[0]) == 7 for request in requests for row in request.rows or ())


def test_who_comes_while_it_runs_gets_the_same_row():
    live = version("a", Speed(launch_s=1.0))
    first = Request(at=0, version=live, numbers=[7], cancel_s=0.1)
    second = Request(at=0.5, version=live, numbers=[7])
    runs, _ = run_all([first, second])
    assert len(runs) == 1
    assert first.cancelled
    assert second.ended == runs[0].ended


def test_the_first_to_leave_takes_nothing_from_the_others():
    live = version("a", Speed(best_batch=1))
    requests = [
        Request(at=0, version=live, numbers=[1]),
        Request(at=0.001, version=live, numbers=[7], cancel_s=0.001),
        Request(at=0.002, version=live, numbers=[8], cancel_s=0.001),
        Request(at=0.002, version=live, numbers=[7]),
    ]
    runs, _ = run_all(requests)
    assert [run.numbers for run in runs] == [[1], [7]]
    assert requests[1].cancelled
    assert requests[3].rows is not None


def test_an_item_becomes_as_urgent_as_the_most_urgent_that_waits_for_it():
    live = version("a", Speed(best_batch=1))
    requests = [
        Request(at=0, version=live, numbers=[1]),
        Request(at=0.001, version=live, numbers=[7], priority=Priority.BULK),
        Request(at=0.002, version=live, numbers=[8], priority=Priority.BULK),
        Request(at=0.003, version=live, numbers=[9]),
        Request(at=0.004, version=live, numbers=[8], deadline_s=1),
    ]
    runs, _ = run_all(requests)
    assert [run.numbers for run in runs] == [[1], [8], [9], [7]]
    assert requests[2].ended == requests[4].ended


def test_versions_and_towers_share_nothing():
    requests = [
        Request(at=0, version=version(name), numbers=[7], lengths=[1], tower=tower)
        for name in "ab"
        for tower in Tower
    ]
    runs, shared = run_all(requests)
    assert len(runs) == 4
    assert shared == 0


def test_everybody_who_shares_a_culprit_gets_its_error():
    live = version("a", Speed())
    requests = [Request(at=0.001, version=live, numbers=[n, 13]) for n in range(5)]

    async def work():
        batcher, device = make()
        device.fails = lambda prepared: number_of(prepared) == 13
        await play(batcher, [Request(at=0, version=live, numbers=[99]), *requests])

    simulate(work)
    for request in requests:
        assert request.rows is not None
        row, error = request.rows
        assert int(row[0]) == request.numbers[0]
        assert isinstance(error, Exception)
