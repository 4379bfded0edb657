"""What both sides of the suite search are timed with: one call after another."""

import itertools
import time
from collections.abc import Callable
from typing import Any

from benchmarks.timing import percentile

WARM = 3
"""Calls that do not count."""


def timed(call: Callable[[int], object], count: int, seconds: float) -> dict[str, Any]:
    """Calls with 0 … count - 1 over and over for at least so many seconds.

    Returns:
        Percentiles of the time of a call in milliseconds, and how many there were.
    """
    for at in range(min(WARM, count)):
        call(at)
    latencies: list[float] = []
    ends = time.perf_counter() + seconds
    for at in itertools.cycle(range(count)):
        began = time.perf_counter()
        if began >= ends and latencies:
            break
        call(at)
        latencies.append(1000 * (time.perf_counter() - began))
    found = {f"p{share}_ms": percentile(latencies, share) for share in (50, 99)}
    return {**found, "calls": len(latencies)}
