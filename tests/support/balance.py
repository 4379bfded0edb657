"""The order of tests on several workers: none waits at the end for a long test of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

T = TypeVar("T")


def long_ones_first(
    tests: Sequence[T], workers: int, *, slow: Callable[[T], bool], file: Callable[[T], object]
) -> list[T]:
    """Puts slow tests at the beginning of every worker's share, about as many in each.

    pytest-xdist's worksteal begins with shares of equally many tests, in their order; a worker
    that has done its own takes tests from the end of another's. Those of one file stay together:
    they often share what is made for the file.
    """
    others = [test for test in tests if not slow(test)]
    shares: list[list[T]] = [[] for _ in range(workers)]
    for _, of_a_file in groupby((test for test in tests if slow(test)), key=file):
        min(shares, key=len).extend(of_a_file)
    ordered: list[T] = []
    for number, share in enumerate(shares):
        # As the scheduler counts: the same part of what is left for each that is left.
        room = max(0, (len(tests) - len(ordered)) // (workers - number) - len(share))
        ordered += share + others[:room]
        del others[:room]
    return ordered + others
