"""The loops that serving is compared with."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.corpus import Item
from benchmarks.loops import best_batch, run_loop


class Counting:
    """Takes 5 ms a batch and 1 ms an item; the vector of item "3" is [3, 1]."""

    def __init__(self, *, overlap: bool) -> None:
        self.overlap = overlap
        self.in_flight = self.most = 0

    def prepare(self, items: Sequence[Item]) -> list[int]:
        return [int(str(item)) for item in items]

    def submit(self, prepared: list[int]) -> Callable[[], NDArray[np.float32]]:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)

        def wait() -> NDArray[np.float32]:
            time.sleep(0.005 + 0.001 * len(prepared))
            self.in_flight -= 1
            return np.array([[number, 1] for number in prepared], np.float32)

        return wait


ITEMS: list[Item] = [str(number) for number in range(16)]


@pytest.mark.parametrize("overlap", [False, True])
def test_every_item_gets_its_own_vector(overlap: bool) -> None:
    loop = Counting(overlap=overlap)
    looped = run_loop(loop, ITEMS, 4, 0.1)
    assert (loop.most, loop.in_flight) == (2 if overlap else 1, 0)
    assert {at: float(row[0]) for at, row in looped.rows.items()} == {n: n for n in range(16)}
    assert 0 < looped.rate <= 4 / 0.009


class Noting(Counting):
    """Notes the sizes of its batches, and is disturbed in some of them, by position."""

    def __init__(self, disturbed: Sequence[int] = ()) -> None:
        super().__init__(overlap=False)
        self.sizes: list[int] = []
        self._disturbed = disturbed

    def submit(self, prepared: list[int]) -> Callable[[], NDArray[np.float32]]:
        if len(self.sizes) in self._disturbed:
            time.sleep(0.2)
        self.sizes.append(len(prepared))
        return super().submit(prepared)


def test_every_size_is_timed_in_every_pass() -> None:
    loop = Noting()
    best_batch(loop, ITEMS, (16, 1, 4), 0.0, 60.0)
    warmed = [1, 1, 4, 4, 16, 16]  # the first batch of a size does not count
    assert loop.sizes == [*warmed, 1, 4, 16, 1, 4, 16]


@pytest.mark.parametrize("disturbed", [(4, 5), (8,), (11,)])
def test_one_disturbed_moment_does_not_pick_the_size(disturbed: tuple[int, ...]) -> None:
    loop = Noting(disturbed)
    assert best_batch(loop, ITEMS, (1, 4, 16), 0.0, 60.0)["batch"] == 16


@pytest.mark.parametrize(("limit", "tried"), [(0.0, {1}), (60.0, {1, 4, 16})])
def test_sizes_that_take_too_long_are_not_tried(limit: float, tried: set[int]) -> None:
    loop = Noting()
    best_batch(loop, ITEMS, (1, 4, 16), 0.0, limit)
    assert set(loop.sizes) == tried


def test_larger_batches_win_here() -> None:
    found = best_batch(Counting(overlap=False), ITEMS, (1, 4, 16, 64), 0.05, 60.0)
    assert found["batch"] == found["cap"] == 16  # 64 are more than there are
    assert found["cap_s"] == pytest.approx(16 / found["rate"])


def test_a_batch_of_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="batches of 17"):
        run_loop(Counting(overlap=False), ITEMS, 17, 0.1)
