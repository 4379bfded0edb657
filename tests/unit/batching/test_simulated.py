"""Policies under load, in virtual time with a device of known speed."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hotclip_server.batching.ticket import Priority
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import DeadlineExceeded, Unavailable

from .simulation import Request, Run, Speed, make, play, simulate, version

SHAPES = st.fixed_dictionaries(
    {
        "at": st.floats(0, 1),
        "lengths": st.lists(st.integers(1, 70), min_size=1, max_size=30),
        "version": st.integers(0, 1),
        "vision": st.booleans(),
        "bulk": st.booleans(),
        "deadline": st.one_of(st.none(), st.floats(0.01, 3)),
        "cancel": st.one_of(st.none(), st.floats(0, 1)),
    }
)


def requests_of(shapes, measured):
    versions = [
        version("a", measured=measured),
        version("b", Speed(padded=False, launch_s=0.02), measured=measured),
    ]
    numbers = itertools.count()
    return [
        Request(
            at=shape["at"],
            version=versions[shape["version"]],
            numbers=[next(numbers) for _ in shape["lengths"]],
            lengths=[1] * len(shape["lengths"]) if shape["vision"] else shape["lengths"],
            tower=Tower.VISION if shape["vision"] else Tower.TEXT,
            priority=Priority.BULK if shape["bulk"] else Priority.INTERACTIVE,
            deadline_s=shape["deadline"],
            cancel_s=shape["cancel"],
        )
        for shape in shapes
    ]


@settings(max_examples=150, deadline=None)
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=15),
    depth=st.integers(1, 2),
    measured=st.booleans(),
)
def test_nothing_is_lost_doubled_mixed_late_or_idle(shapes, depth, measured):
    requests = requests_of(shapes, measured)

    async def work():
        batcher, device = make(depth=depth)
        await play(batcher, requests)
        return device.runs

    check_answers(requests, simulate(work), depth)


def check_answers(requests: list[Request], runs: list[Run], depth: int) -> None:
    owner = {number: request for request in requests for number in request.numbers}
    run_of: dict[int, Run] = {}
    for run in runs:
        for number in run.numbers:
            assert number not in run_of, "an item ran twice"
            run_of[number] = run
            assert owner[number].version.encoder is run.encoder, "another version"
            assert owner[number].tower is run.tower, "another tower"
    for request in requests:
        if request.rows is not None:
            assert [int(row[0]) for row in request.rows] == list(request.numbers), "order"
            for number in request.numbers:
                run = run_of[number]
                assert request.deadline is None or run.closed < request.deadline, "too late"
                check_conserved(request.at, run, runs)
        elif request.error is not None:
            assert isinstance(request.error, Unavailable | DeadlineExceeded)
        else:
            assert request.cancelled


def check_conserved(since: float, run: Run, runs: list[Run]) -> None:
    """The device worked all the time that an item waited for its batch to begin."""
    busy = sum(max(0.0, min(r.ended, run.began) - max(r.began, since)) for r in runs)
    assert busy == pytest.approx(run.began - since, abs=1e-9), "idle while an item waits"
