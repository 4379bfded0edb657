"""One computation and all that wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hotclip_server.batching.ticket import Ticket
from hotclip_server.encoding.protocol import Prepared
from hotclip_server.errors import DeadlineExceeded

if TYPE_CHECKING:
    from hotclip_server.batching.lane import Lane


class Entry:
    """An item in a queue or on the device.

    lane: Where it waits; None: it runs, or is done with.
    bucket: Number of the bucket in its lane.
    prepared: None once nobody waits, or it is done.
    at: Since when it waits.
    waiters: Ticket, index within it, and since when it waits.
    """

    __slots__ = ("_live", "at", "bucket", "key", "lane", "length", "prepared", "waiters")

    def __init__(
        self, lane: Lane, bucket: int, prepared: Prepared, ticket: Ticket, index: int, at: float
    ) -> None:
        self.lane: Lane | None = lane
        self.bucket = bucket
        self.prepared: Prepared | None = prepared
        self.key = prepared.key
        self.length = prepared.length
        self.at = at
        self.waiters = [(ticket, index, at)]
        self._live = 1

    def join(self, ticket: Ticket, index: int, at: float) -> None:
        """Somebody else waits for the same."""
        self.waiters.append((ticket, index, at))
        self._live += 1

    def drop(self) -> None:
        """One of those who wait went away."""
        self._live -= 1
        if not self._live and self.lane is not None:
            self.prepared = None

    def wanted(self, now: float) -> bool:
        """Whether it waits to be run for somebody; fails requests whose deadline passed."""
        if self.prepared is None or self.lane is None:
            return False
        wanted = False
        for ticket, _, _ in self.waiters:
            if ticket.deadline is not None and now >= ticket.deadline:
                ticket.fail(DeadlineExceeded("the deadline passed while the request waited"))
            elif not ticket.done:
                wanted = True
        return wanted
