"""What the calls of a load say of the swaps beside it: pure functions of recorded times.

All times are seconds on the monotonic clock, which the processes of a machine share.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that was answered."""

    planned: float
    """When it was due."""
    sent: float
    answered: float
    version: str


@dataclass(frozen=True, slots=True)
class Move:
    """An activation or a rollback."""

    called: float
    returned: float
    version: str
    """Live from then on."""


def violations(first: str, moves: Sequence[Move], asked: Sequence[Asked]) -> list[Asked]:
    """The answers that no order of all calls explains in which each takes effect at one moment
    between its beginning and its end (Herlihy and Wing 1990, "Linearizability").

    A version that is live again later counts as another value each time. Each answer gets the
    earliest move that it may have seen: its version's, begun before the answer came, whose
    successor had not returned when the question was sent, and not before any that an answer saw
    that came earlier than the question was sent. The moves are one after the other, so the
    earliest is the best choice for all that follow.

    Args:
        first: Live before the first move.
        moves: In their order; each begins after the one before has returned.
    """
    states = [Move(-np.inf, -np.inf, first), *moves]
    ends = [*(move.returned for move in moves), np.inf]
    found = []
    under_way: list[tuple[float, int]] = []
    """A heap of when an answer came and which move it saw."""
    least = 0
    for one in sorted(asked, key=lambda call: call.sent):
        while under_way and under_way[0][0] < one.sent:
            least = max(least, heapq.heappop(under_way)[1])
        candidates = (
            at
            for at in range(least, len(states))
            if states[at].version == one.version
            and states[at].called <= one.answered
            and ends[at] >= one.sent
        )
        state = next(candidates, None)
        if state is None:
            found.append(one)
        else:
            heapq.heappush(under_way, (one.answered, state))
    return found


def longest_pause(asked: Sequence[Asked]) -> float:
    """Longest time in which calls were under way and none was answered, in seconds.

    From an answer, or from the first call that was sent to a server with nothing to do, to the
    next answer: what no call was under way for is the load's pause, not the server's.
    """
    longest = 0.0
    last = -np.inf
    order = sorted(asked, key=lambda call: call.answered)
    # Sending times of what is unanswered, the smallest of which is that of all from here on.
    earliest = np.minimum.accumulate([call.sent for call in reversed(order)])[::-1]
    for call, first_sent in zip(order, earliest, strict=True):
        longest = max(longest, call.answered - max(last, float(first_sent)))
        last = call.answered
    return longest


def relative_growth(values: Sequence[float]) -> float:
    """What the straight line through equally spaced values (least squares) grows by from the
    first to the last, over their mean.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"no line through {len(values)} values")
    slope = float(np.polyfit(np.arange(len(values)), values, 1)[0])
    return slope * (len(values) - 1) / float(np.mean(values))
