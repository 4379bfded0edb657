"""What counts as equal to a reference."""

import numpy as np

from benchmarks.parity import compare


def unit(*degrees: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_vectors_of_two_inputs_that_were_exchanged_do_not_pass() -> None:
    exact = unit(0, 40, 80, 120)
    assert compare(exact, exact).passed
    assert not compare(exact[[1, 0, 2, 3]], exact).passed_rounded


def test_references_that_are_all_but_equal_may_be_taken_for_each_other() -> None:
    exact = unit(0, 0.1, 80, 120)
    served = unit(0.08, 0.1, 80, 120)
    assert compare(served, exact).nearest_is_own
    assert not compare(unit(0, 0.1, 120, 120), exact).nearest_is_own
