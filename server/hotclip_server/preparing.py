"""Predicts how long a request would wait for the pool that decodes and tokenises.

The device is not what everybody waits for: a small model, or a fast one, is ready sooner than
the next photograph. Requests share the pool as `Turns` lets them: each has a few tasks in line at
a time, so before one of few items stand as many of every other request, and not all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

from hotclip_server.batching.admission import LATER_TURNS, MOST_OF_IT, RETRY_S
from hotclip_server.batching.ticket import Priority
from hotclip_server.contents import Content
from hotclip_server.errors import Unavailable

TEXT, IMAGE, TENSOR = "text", "image", "tensor"
"""Kinds of items; decoding an image goes by bytes."""
FOLLOW, CLIP = 0.1, math.log(2.0)
"""Weight of one request in the average of actual to predicted seconds, and how far off it counts
at most."""
FURTHEST = math.log(8.0)
"""That this average goes."""
WORTH_LEARNING_S = 0.02
"""Of a shorter wait the loop's own turns are too large a part."""
MOST_TO_ADD_UP = 64
"""Requests that are looked at one by one where that decides nothing."""
KEPT = 0.98
"""Of what was learnt, with each task that was done: some fifty tasks are remembered."""


class Learnt:
    """Seconds a unit of work, of late."""

    def __init__(self) -> None:
        self._seconds = self._units = 0.0

    def add(self, units: int, seconds: float) -> None:
        """A task was done."""
        self._seconds = KEPT * self._seconds + seconds
        self._units = KEPT * self._units + units

    @property
    def unit_ns(self) -> float:
        """Nanoseconds of a unit; 0.0 as long as nothing is known."""
        return 1e9 * self._seconds / self._units if self._units else 0.0


class Booking:
    """What is left to prepare of a request.

    Args:
        kinds: Of each item.
        units: Of work, of each item.
        item_ns: Predicted nanoseconds of each; whole ones, so that what is taken off leaves
            exactly nothing.
        at: When it was taken in.
    """

    __slots__ = ("_item_ns", "_largest_ns", "at", "expected_s", "kinds", "left_ns", "units")

    def __init__(
        self, kinds: Sequence[str], units: Sequence[int], item_ns: list[int], at: float
    ) -> None:
        self.kinds, self.units, self.at = kinds, units, at
        self._item_ns = item_ns
        self.left_ns = sum(item_ns)
        """Of one thread."""
        self._largest_ns = max(item_ns, default=0)
        self.expected_s = 0.0
        """Until all of it is prepared, as if the threads had the machine for themselves."""

    def predicted_s(self, task: Sequence[int]) -> float:
        """Seconds of items on a thread."""
        return 1e-9 * sum([self._item_ns[at] for at in task])

    def done(self, task: Sequence[int]) -> int:
        """Items were prepared; gives the nanoseconds that were predicted of them."""
        done_ns = 0
        for at in task:
            done_ns += self._item_ns[at]
            self._item_ns[at] = 0
        self.left_ns -= done_ns
        return done_ns

    def before_s(self, items: int) -> float:
        """What of it stands before the last of so many items of another request."""
        return 1e-9 * min(self.left_ns, items * self._largest_ns)


NOTHING = Booking((), (), [], 0.0)
"""Of a request that was not taken in."""


class PrepareLoad:
    """Books what requests bring, and refuses what would be late because of others. Event loop
    only.

    Args:
        threads: Of the pool.
        in_line: Tasks of a request that stand in line at a time.
    """

    def __init__(
        self, threads: int, in_line: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._threads, self._in_line, self._clock = threads, in_line, clock
        self._learnt = {kind: Learnt() for kind in (TEXT, IMAGE, TENSOR)}
        self._booked: tuple[set[Booking], ...] = tuple(set() for _ in Priority)
        self._left_ns = [0 for _ in Priority]
        self._log_factor = 0.0

    @contextmanager
    def booked(
        self, contents: Sequence[Content], priority: Priority, deadline: float | None
    ) -> Iterator[Booking]:
        """Takes a request in until the block ends.

        Raises:
            Unavailable: it would be late; reason WAIT_TOO_LONG. What would be late on an idle
                pool is not refused: trying again is no cure.
        """
        booking = self._booking(contents)
        if deadline is not None:
            self._check(booking, priority, len(contents), deadline - booking.at)
        booked = self._booked[priority]
        booked.add(booking)
        self._left_ns[priority] += booking.left_ns
        try:
            yield booking
        finally:
            booked.discard(booking)
            self._left_ns[priority] -= booking.left_ns
            self._learn(booking)

    def _booking(self, contents: Sequence[Content]) -> Booking:
        now, count = self._clock(), len(contents)
        unit_ns = {kind: learnt.unit_ns for kind, learnt in self._learnt.items()}
        if set(map(type, contents)) == {str}:  # a thousand of them must cost nothing
            return Booking((TEXT,) * count, (1,) * count, [round(unit_ns[TEXT])] * count, now)
        kinds = [_kind(content) for content in contents]
        units = [len(content) if isinstance(content, bytes) else 1 for content in contents]
        item_ns = [round(n * unit_ns[kind]) for kind, n in zip(kinds, units, strict=True)]
        return Booking(kinds, units, item_ns, now)

    def done(
        self, booking: Booking, priority: Priority, task: Sequence[int], seconds: float
    ) -> None:
        """A task of a request, of items of one kind, took so long."""
        learnt = self._learnt[booking.kinds[task[0]]]
        learnt.add(sum([booking.units[at] for at in task]), seconds)
        self._left_ns[priority] -= booking.done(task)
        if not booking.left_ns:
            self._learn(booking)

    def _learn(self, booking: Booking) -> None:
        """All of it is prepared, or nobody waits any more: then it took that long at least."""
        if booking.expected_s <= WORTH_LEARNING_S:
            return
        took_s = max(self._clock() - booking.at, 1e-3)
        off = math.log(took_s / (self._factor * booking.expected_s))
        if off > 0 or not booking.left_ns:
            self._log_factor += FOLLOW * max(-CLIP, min(CLIP, off))
            self._log_factor = max(-FURTHEST, min(FURTHEST, self._log_factor))
        booking.expected_s = 0.0

    @property
    def _factor(self) -> float:
        """Actual to predicted seconds, of late: the device, the calls and whatever else there is
        take the processor from the pool."""
        return math.exp(self._log_factor)

    def _check(self, booking: Booking, priority: Priority, items: int, left_s: float) -> None:
        factor = self._factor
        own_s = 1e-9 * booking.left_ns / min(self._threads, items)
        room_s = MOST_OF_IT * left_s
        need_s = factor * own_s if factor * own_s <= room_s else 0.0
        all_s = 1e-9 * sum(self._left_ns[: priority + 1]) / self._threads
        in_time = LATER_TURNS * factor * all_s + need_s <= room_s
        if in_time and sum(map(len, self._booked)) > MOST_TO_ADD_UP:
            return
        rounded = -(-items // self._in_line) * self._in_line
        ahead = chain(*self._booked[: priority + 1])
        wait_s = sum(one.before_s(rounded) for one in ahead) / self._threads
        booking.expected_s = wait_s + own_s
        wait_s *= factor * (LATER_TURNS if items > self._in_line else 1.0)
        if wait_s + need_s <= room_s:
            return
        late_s = wait_s + need_s - room_s
        raise Unavailable(
            f"decoding would begin in {wait_s:.2f} s and take {factor * own_s:.2f} s; the deadline "
            f"is in {left_s:.2f} s",
            retry_after_s=min(RETRY_S[1], max(RETRY_S[0], late_s)),
            reason="WAIT_TOO_LONG",
        )


def _kind(content: Content) -> str:
    if isinstance(content, str):
        return TEXT
    return IMAGE if isinstance(content, bytes) else TENSOR
