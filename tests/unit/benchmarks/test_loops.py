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


def test_larger_batches_win_here() -> None:
    found = best_batch(Counting(overlap=False), ITEMS, (1, 4, 16, 64), 0.05)
    assert found["batch"] == found["cap"] == 16  # 64 are more than there are
    assert found["cap_s"] == pytest.approx(16 / found["rate"])


def test_a_batch_of_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="batches of 17"):
        run_loop(Counting(overlap=False), ITEMS, 17, 0.1)
