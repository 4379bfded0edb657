"""Predicts how long a request would wait for the pool that decodes and tokenises.

The device is not what everybody waits for: a small model, or a fast one, is ready sooner than
the next photograph. Requests share the pool as `Turns` lets them: each has a few tasks in line at
a time, so before one of few items stand as many of every other request, and not all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from hotclip_server.batching.admission import RETRY_S
from hotclip_server.batching.ticket import Priority
from hotclip_server.contents import Content
from hotclip_server.errors import Unavailable

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

    def of(self, units: int) -> float:
        """Seconds of so many units; 0.0 as long as nothing is known."""
        return units * self._seconds / self._units if self._units else 0.0


class Booking:
    """What is left to prepare of a request.

    Args:
        seconds: Predicted, of each item.
    """

    __slots__ = ("_item_ns", "_largest_ns", "_left_ns", "priority")

    def __init__(self, priority: Priority, seconds: Sequence[float]) -> None:
        self.priority = priority
        # Whole nanoseconds: what is taken off leaves exactly nothing.
        self._item_ns = [round(1e9 * one) for one in seconds]
        self._left_ns = sum(self._item_ns)
        self._largest_ns = max(self._item_ns, default=0)

    @property
    def left_s(self) -> float:
        """Of one thread."""
        return 1e-9 * self._left_ns

    def done(self, positions: Sequence[int]) -> None:
        """Items were prepared."""
        for at in positions:
            self._left_ns -= self._item_ns[at]
            self._item_ns[at] = 0

    def before_s(self, items: int) -> float:
        """What of it stands before the last of so many items of another request."""
        return 1e-9 * min(self._left_ns, items * self._largest_ns)


NOTHING = Booking(Priority.INTERACTIVE, ())
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
        self._learnt = {kind: Learnt() for kind in ("text", "image", "tensor")}
        self._booked: set[Booking] = set()

    @contextmanager
    def booked(
        self, contents: Sequence[Content], priority: Priority, deadline: float | None
    ) -> Iterator[Booking]:
        """Takes a request in until the block ends.

        Raises:
            Unavailable: it would be late; reason WAIT_TOO_LONG. What would be late on an idle
                pool is not refused: trying again is no cure.
        """
        seconds = [self._learnt[kind].of(units) for kind, units in map(_size, contents)]
        booking = Booking(priority, seconds)
        if deadline is not None:
            self._check(booking, len(contents), deadline - self._clock())
        self._booked.add(booking)
        try:
            yield booking
        finally:
            self._booked.discard(booking)

    def predicted_s(self, contents: Sequence[Content], task: Sequence[int]) -> float:
        """Seconds of a task on a thread."""
        return sum(self._learnt[kind].of(units) for kind, units in self._sizes(contents, task))

    def done(
        self, booking: Booking, contents: Sequence[Content], task: Sequence[int], seconds: float
    ) -> None:
        """A task of a request, of items of one kind, took so long."""
        sizes = self._sizes(contents, task)
        self._learnt[sizes[0][0]].add(sum(units for _, units in sizes), seconds)
        booking.done(task)

    @staticmethod
    def _sizes(contents: Sequence[Content], task: Sequence[int]) -> list[tuple[str, int]]:
        return [_size(contents[at]) for at in task]

    def _check(self, booking: Booking, items: int, left_s: float) -> None:
        own_s = booking.left_s / min(self._threads, max(1, items))
        need_s = own_s if own_s <= left_s else 0.0
        ahead = [one for one in self._booked if one.priority <= booking.priority]
        if sum(one.left_s for one in ahead) / self._threads + need_s <= left_s:
            return
        rounded = -(-items // self._in_line) * self._in_line
        wait_s = sum(one.before_s(rounded) for one in ahead) / self._threads
        if wait_s + need_s <= left_s:
            return
        late_s = wait_s + need_s - left_s
        raise Unavailable(
            f"decoding would begin in {wait_s:.2f} s and take {own_s:.2f} s; the deadline is in "
            f"{left_s:.2f} s",
            retry_after_s=min(RETRY_S[1], max(RETRY_S[0], late_s)),
            reason="WAIT_TOO_LONG",
        )


def _size(content: Content) -> tuple[str, int]:
    """Its kind, and how many units of work it is: decoding goes by bytes."""
    if isinstance(content, str):
        return "text", 1
    return ("image", len(content)) if isinstance(content, bytes) else ("tensor", 1)
