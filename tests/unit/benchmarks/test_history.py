"""What recorded calls say of swaps: against hand-made histories, and against a search of all
orders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.history import Asked, Move, longest_pause, relative_growth, violations

MOVES = [Move(10, 11, "b"), Move(20, 21, "a"), Move(30, 31, "b")]


def call(sent: float, answered: float, version: str) -> Asked:
    return Asked(sent, sent, answered, version)


@pytest.mark.parametrize(
    ("one", "right"),
    [
        (call(1, 2, "a"), True),
        (call(1, 2, "b"), False),  # before the first move
        (call(9, 10.5, "b"), True),  # answered while the move was under way
        (call(10.5, 12, "a"), True),  # sent before it returned
        (call(11.5, 12, "a"), False),  # sent after it
        (call(11.5, 25, "a"), True),  # of the next move, which went by meanwhile
        (call(40, 41, "a"), False),
        (call(40, 41, "nobody"), False),
    ],
)
def test_one_answer(one: Asked, right: bool) -> None:
    assert violations("a", MOVES, [one]) == ([] if right else [one])


def test_an_old_answer_after_a_new_one_is_wrong() -> None:
    new, old = call(10.1, 10.4, "b"), call(10.5, 10.9, "a")
    assert violations("a", MOVES, [new]) == violations("a", MOVES, [old]) == []
    assert violations("a", MOVES, [new, old]) == [old]
    beside = call(10.3, 10.9, "a")  # sent before the new one was answered
    assert violations("a", MOVES, [new, beside]) == []


CALLS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 4), st.sampled_from("ab")), max_size=4
)


@given(CALLS)
def test_equal_to_a_search_of_all_orders(drawn: list[tuple[int, int, str]]) -> None:
    """By brute force: the states that each call saw, such that no call saw an older one than
    another that was over before it began."""
    moves = [Move(3, 5, "b"), Move(6, 9, "a")]
    asked = [call(sent, sent + took + 0.5, version) for sent, took, version in drawn]
    states = ["a", "b", "a"]
    began, over = [-np.inf, 3, 6], [5, 9, np.inf]
    possible = [
        [
            at
            for at, version in enumerate(states)
            if version == one.version and began[at] <= one.answered and over[at] >= one.sent
        ]
        for one in asked
    ]
    explained = any(
        all(
            chosen[i] <= chosen[j]
            for i, j in itertools.permutations(range(len(asked)), 2)
            if asked[i].answered < asked[j].sent
        )
        for chosen in itertools.product(*possible)
    )
    assert (violations("a", moves, asked) == []) is explained


def test_the_longest_pause_needs_somebody_who_waits() -> None:
    assert longest_pause([call(0, 1, "a"), call(50, 52, "a")]) == 2
    # Three under way: answers at 3, 4 and 9.
    assert longest_pause([call(0, 3, "a"), call(1, 9, "a"), call(2, 4, "a")]) == 5
    assert longest_pause([]) == 0


def test_growth_is_that_of_the_line() -> None:
    assert relative_growth([100, 100, 100, 100]) == pytest.approx(0)
    assert relative_growth([99, 100, 101]) == pytest.approx(0.02)
    assert relative_growth([100, 104, 96, 100]) == pytest.approx(-0.024)
    with pytest.raises(ValueError, match="no line"):
        relative_growth([1.0])
