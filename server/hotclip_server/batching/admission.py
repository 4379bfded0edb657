"""Whether a request comes in: by room in the queue, and by whether it would be in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hotclip_server.batching.backlog import Backlog, Place
from hotclip_server.batching.budget import Budget, Ledger
from hotclip_server.batching.cost import CostModel
from hotclip_server.batching.queue import HORIZON_S, QueueSet
from hotclip_server.batching.ticket import Demand, Priority, Resident, Ticket
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import DeadlineExceeded, Unavailable

RETRY_S = (0.05, 5.0)
"""Least and most that a refused caller is told to stay away."""
MOST_OF_IT = 0.8
"""Of the time to a deadline that waiting and running may be predicted to take: who is admitted at
the very edge is late as often as not, and what was computed for it is lost."""
LATER_TURNS = 2.0
"""Times what stands before a request now that it may have to wait, if it takes several turns:
while it waits, others come and have their first turns before its later ones."""


class Admission:
    """Admits requests whole or refuses them at once.

    Args:
        budget: Items and bytes that may wait.
        costs: Predicts what batches take.
        queues: Where admitted items will wait.
        busy_s: Seconds until the device is done with what it was given, at a time.
        tell: See `Ledger`.
    """

    def __init__(
        self,
        budget: Budget,
        costs: CostModel,
        queues: QueueSet,
        busy_s: Callable[[float], float],
        tell: Callable[[bool], None],
    ) -> None:
        self.backlog = Backlog(len(Priority))
        self.ledger = Ledger(budget, self.retry_after_s, tell)
        self._costs = costs
        self._queues = queues
        self._busy_s = busy_s

    async def admit(
        self,
        resident: Resident,
        demands: Sequence[Demand],
        deadline: float | None,
        priority: Priority,
        now: float,
        *,
        in_turn: bool,
    ) -> Ticket:
        """Books a request.

        Args:
            in_turn: Wait for room instead of being refused; of the prediction nothing is
                asked then.

        Raises:
            Unavailable: no room, or it would be late because of what waits before it.
            DeadlineExceeded: the deadline has passed.
        """
        if deadline is not None and now >= deadline:
            raise DeadlineExceeded("the deadline passed before the request was admitted")
        place, alone_s = self._place(resident, demands, deadline, priority, now)
        sizes = [demand.nbytes for demand in demands]
        if in_turn:
            await self.ledger.take_in_turn(len(sizes), sum(sizes))
        else:
            if deadline is not None:
                self._check_wait(place, len(sizes), alone_s, now, deadline)
            self.ledger.take(len(sizes), sum(sizes))
        return Ticket(resident, sizes, deadline, place, self.ledger, self.backlog)

    def retry_after_s(self) -> float:
        """About how long the present queue takes, within `RETRY_S`; 0.5 if not known."""
        return _within(self.backlog.total_s(Priority.BULK) or 0.5)

    def _check_wait(
        self, place: Place, items: int, alone_s: float, now: float, deadline: float
    ) -> None:
        """Refuses what would be late because of others. What would be late on an idle server
        is not cured by trying again: it is refused only if others alone make it late.

        Raises:
            Unavailable: says when to try again.
        """
        left_s = deadline - now
        room_s = MOST_OF_IT * left_s
        need_s = alone_s if alone_s <= room_s else 0.0
        busy_s = self._busy_s(now)
        times = LATER_TURNS if items > place.per_round else 1.0
        if busy_s + times * self.backlog.total_s(place.priority) + need_s <= room_s:
            return
        wait_s = busy_s + times * self.backlog.ahead_s(place, items)
        if wait_s + need_s <= room_s:
            return
        raise Unavailable(
            f"the request would wait {wait_s:.2f} s and take {alone_s:.2f} s; its deadline is "
            f"in {left_s:.2f} s",
            retry_after_s=_within(wait_s + need_s - room_s),
            reason="WAIT_TOO_LONG",
        )

    def _place(
        self,
        resident: Resident,
        demands: Sequence[Demand],
        deadline: float | None,
        priority: Priority,
        now: float,
    ) -> tuple[Place, float]:
        """Where a request stands, and the seconds that it takes on an idle server."""
        share_s = alone_s = 0.0
        per_round = max(1, len(demands))
        lengths = [demand.length for demand in demands if demand.tower is Tower.TEXT]
        images = len(demands) - len(lengths)
        for tower, items, tokens in (
            (Tower.TEXT, len(lengths), sum(lengths)),
            (Tower.VISION, images, images),
        ):
            if items:
                cost, length = self._costs.of(resident.encoder, tower), tokens / items
                most = cost.most_items(length)
                per_round = min(per_round, most)
                share_s += items * cost.share_s(length)
                alone_s += items * cost.item_s(length) + -(-items // most) * cost.launch_s
        item_s = share_s / len(demands) if demands else 0.0
        due = now + HORIZON_S if deadline is None else min(deadline, now + HORIZON_S)
        return Place(priority, self._queues.rounds[priority], per_round, due, item_s), alone_s


def _within(seconds: float) -> float:
    return min(RETRY_S[1], max(RETRY_S[0], seconds))
