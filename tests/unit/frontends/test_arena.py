"""Places in shared memory: none overlap, none is lost, nobody is passed over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotclip_server.frontends.arena import ALIGNMENT, Area

START, SIZE = 4096, 64 * ALIGNMENT


@given(st.lists(st.tuples(st.integers(1, 20 * ALIGNMENT), st.integers(0, 5)), max_size=60))
def test_places_never_overlap_and_come_back(steps: list[tuple[int, int]]) -> None:
    area = Area(START, SIZE)
    held: list[tuple[int, int]] = []
    asked = granted = 0

    def take(nbytes: int, number: int) -> None:
        def then(at: int) -> None:
            nonlocal granted
            assert number == granted, "first come, first served"
            granted += 1
            assert START <= at <= START + SIZE - nbytes
            assert all(at >= a + n or at + nbytes <= a for a, n in held)
            held.append((at, nbytes))

        area.reserve(nbytes, then)

    for nbytes, releases in steps:
        take(nbytes, asked)
        asked += 1
        for _ in range(min(releases, len(held))):
            area.release(held.pop(0)[0])
    while held:
        area.release(held.pop(0)[0])
    assert (granted, area.taken) == (asked, 0)
    take(SIZE, asked)  # all of it is one piece again
    assert held == [(START, SIZE)]


def test_what_never_fits_is_refused() -> None:
    area = Area(0, SIZE)
    with pytest.raises(ValueError, match="don't fit"):
        area.reserve(SIZE + 1, lambda at: None)
    assert area.fits(SIZE // 4)
    assert not area.fits(SIZE // 2)


def test_thousands_who_went_away_are_passed_over() -> None:
    area = Area(0, SIZE)
    first: list[int] = []
    last: list[int] = []
    area.reserve(SIZE, first.append)
    for _ in range(3000):
        area.reserve(ALIGNMENT, area.release)  # as who went away does with what it gets
    area.reserve(SIZE, last.append)
    area.release(first[0])
    assert last == [0]
    assert area.taken == 1
