"""What is made of measured times: rates, percentiles, paired ratios, a schedule of arrivals."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
"""Of a bootstrap."""


@dataclass(frozen=True, slots=True)
class Span:
    """One call of so many items, seconds on a monotonic clock."""

    began: float
    ended: float
    items: int


def steady_rate(spans: Sequence[Span], began: float, ended: float) -> float:
    """Items a second within a window of a closed loop.

    The items of a call count as done evenly over its time, so that a call that straddles an
    edge of the window counts with the share that lies inside. With whole calls only, a window
    of a few long calls would be wrong by up to one round of them.

    Args:
        spans: Every call that touches the window; the load must go on until the last of those
            that began inside it has ended. Of requests that are under way together, as on a
            stream, those that were sent to an idle server must have ended before the window:
            from then on each is sent when another is answered, their times are the server's
            for all that are under way, and the shares add up to its rate.
    """
    if ended <= began:
        raise ValueError(f"a window of {ended - began} seconds")
    done = 0.0
    for span in spans:
        inside = min(span.ended, ended) - max(span.began, began)
        if inside > 0:
            done += span.items * inside / (span.ended - span.began)
    return done / (ended - began)


def paired_ratio(measured: Sequence[float], baseline: Sequence[float]) -> float:
    """The median of the ratios of segments that ran side by side.

    What slows the machine for a while slows both segments of a pair, and one pair that was
    disturbed does not move a median.

    Raises:
        ValueError: no pairs, or segments without partners.
    """
    if not measured:
        raise ValueError("no pairs")
    pairs = zip(measured, baseline, strict=True)
    return statistics.median(one / other for one, other in pairs)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` percent of `values` do not exceed (nearest rank).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    return float(np.percentile(values, share, method="inverted_cdf"))


def pooled_interval(
    measured: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], share: float
) -> tuple[float, float]:
    """95 % interval of the ratio of two percentiles, each of all values of its windows.

    Windows are drawn again, with the one beside them, a thousand times (bootstrap, percentile
    method; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), as calls of
    one window wait for each other. Of few windows it is too narrow.

    Raises:
        ValueError: no windows, windows without partners, or one without values.
    """
    pairs = [
        (np.asarray(one), np.asarray(other)) for one, other in zip(measured, baseline, strict=True)
    ]
    if not pairs or not all(one.size and other.size for one, other in pairs):
        raise ValueError("no windows, or one without values")
    generator = np.random.default_rng(0)
    ratios = []
    for drawn in generator.integers(len(pairs), size=(DRAWS, len(pairs))):
        one, other = (np.concatenate([pairs[at][side] for at in drawn]) for side in (0, 1))
        high, usual = (np.percentile(v, share, method="inverted_cdf") for v in (one, other))
        ratios.append(high / usual)
    low, top = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(top)


def poisson_arrivals(rate: float, seconds: float, *, seed: int) -> NDArray[np.float64]:
    """Moments of a Poisson process in [0, seconds), ascending: independent arrivals.

    Args:
        rate: Arrivals a second.
    """
    if rate <= 0:
        raise ValueError(f"{rate} arrivals a second")
    generator = np.random.default_rng(seed)
    expected = rate * seconds
    drawn = np.empty(0)
    while not len(drawn) or drawn[-1] < seconds:
        gaps = generator.exponential(1 / rate, size=int(expected + 6 * expected**0.5) + 8)
        drawn = np.concatenate([drawn, (drawn[-1] if len(drawn) else 0.0) + np.cumsum(gaps)])
    return drawn[drawn < seconds]


def smallest_near_best(rates: dict[int, float], share: float = 0.95) -> int:
    """The smallest batch whose rate is at least `share` of the best of all."""
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= share * best)
