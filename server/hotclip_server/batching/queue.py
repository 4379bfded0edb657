"""Which batch runs next.

Order: class, then round, then due time. A request that had a full batch's worth of the device
goes on in the next round, after all that are in this one: a query waits for one batch's worth
of every other request and not for a long one's rest. A request is due at its deadline, at the
latest `HORIZON_S` after it came.

Nothing starves: when the item that waits longest has waited `AGED_S`, every `AGED_EVERY`th
batch begins with it, whatever its class, round, tower and version. Its place in that order
never gets worse, so an item with k older ones before it runs at the latest in batch
`AGED_EVERY` * (k + 1) after it has waited `AGED_S`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from hotclip_server.batching.cost import CostModel
from hotclip_server.batching.entry import Entry
from hotclip_server.batching.filling import Batch, fill
from hotclip_server.batching.lane import Lane
from hotclip_server.batching.ticket import Priority, Rank, Ticket
from hotclip_server.encoding.protocol import Prepared, Tower

HORIZON_S = 2.0
"""A request without a deadline, or with one further away, is due this long after it came."""
AGED_S = 1.0
AGED_EVERY = 8
LEAST_TO_COMPACT = 64


class QueueSet:
    """All queues of a server. No torch, no clock of its own.

    Args:
        costs: Predicts what batches take.
    """

    def __init__(self, costs: CostModel) -> None:
        self.rounds = [0 for _ in Priority]
        """The round of each class that is being served; new requests begin in it."""
        self._costs = costs
        self._lanes: dict[tuple[str, int, Tower], Lane] = {}
        self._oldest: deque[Entry] = deque()
        self._compact_at = LEAST_TO_COMPACT
        self._batches = 0
        self._since_aged = 0

    def put(self, ticket: Ticket, items: Iterable[tuple[int, Prepared]], now: float) -> int:
        """Queues items of a ticket.

        Returns:
            How many joined others that wait or run already.
        """
        joined = 0
        # Who did not use the rounds that have passed does not get them later.
        ticket.stand_in(self.rounds[ticket.place.priority])
        lanes: dict[Tower, Lane] = {}
        for index, prepared in items:
            lane = lanes.get(prepared.tower)
            if lane is None:
                lane = lanes[prepared.tower] = self._lane(ticket, prepared.tower)
            entry = lane.put(ticket, index, prepared, now)
            if entry is None:
                joined += 1
            else:
                self._oldest.append(entry)
        if len(self._oldest) > self._compact_at:
            self._compact()
        return joined

    def take(self, now: float) -> Batch | None:
        """Closes the next batch; None: nothing waits."""
        best: tuple[Rank, Entry, Lane] | None = None
        for key, lane in list(self._lanes.items()):
            head = lane.head(now)
            if head is not None:
                if best is None or head[0] < best[0]:
                    best = (*head, lane)
            elif not lane.shared:
                # An empty lane would keep its version's weights alive.
                del self._lanes[key]
        if best is None:
            self._oldest.clear()
            return None
        self._batches += 1
        self._since_aged += 1
        batch = self._aged(now)
        if batch is None:
            rank, entry, lane = best
            priority, round_, _ = rank
            self.rounds[priority] = max(self.rounds[priority], round_)
            # Its engine may have changed, and with it what a full batch is.
            self._costs.of(lane.resident.encoder, lane.tower)
            batch = Batch(lane, self._batches)
            fill(batch, rank, entry.bucket, now)
        return batch

    def forget(self, batch: Batch) -> None:
        """A batch is done with: nobody can join its items any more."""
        lane = batch.lane
        for entry in batch.entries:
            lane.forget(entry)
        if not lane.shared and self._lanes.get(_key(lane)) is lane:
            del self._lanes[_key(lane)]

    def clear(self) -> None:
        """Forgets everything, after all who wait were told."""
        self._lanes.clear()
        self._oldest.clear()

    def _aged(self, now: float) -> Batch | None:
        """A batch that begins with what has waited longest, if its turn has come."""
        head = self._longest_waiting(now)
        if head is None or self._since_aged < AGED_EVERY or now - head.at < AGED_S:
            return None
        self._since_aged = 0
        lane = head.lane
        if lane is None:
            raise RuntimeError("an item that waits is nowhere; this is a bug")
        batch = Batch(lane, self._batches)
        rank = _whose_turn(head).rank
        entry: Entry | None = head
        while entry is not None and entry.lane is lane:
            added_s = batch.added_s(entry.length)
            if not batch.fits(added_s):
                _whose_turn(entry).end_turn()
                break
            batch.add(entry, added_s, _whose_turn(entry))
            entry = self._longest_waiting(now)
        fill(batch, rank, head.bucket, now)
        return batch

    def _longest_waiting(self, now: float) -> Entry | None:
        oldest = self._oldest
        while oldest:
            if oldest[0].wanted(now):
                return oldest[0]
            oldest.popleft()
        return None

    def _compact(self) -> None:
        """Drops what is done with behind something that waits. As much again must come before
        it looks anew: each item pays for a constant share."""
        self._oldest = deque(
            entry for entry in self._oldest if entry.lane is not None and entry.prepared is not None
        )
        self._compact_at = max(LEAST_TO_COMPACT, 2 * len(self._oldest))

    def _lane(self, ticket: Ticket, tower: Tower) -> Lane:
        resident = ticket.resident
        # The same version loaded a second time is another encoder: a batch runs on one.
        key = (resident.version_id, id(resident.encoder), tower)
        lane = self._lanes.get(key)
        if lane is None:
            cost = self._costs.of(resident.encoder, tower)
            lane = self._lanes[key] = Lane(resident, tower, cost)
        return lane


def _whose_turn(entry: Entry) -> Ticket:
    waiting = [ticket for ticket, _, _ in entry.waiters if not ticket.done]
    return min(waiting, key=lambda ticket: ticket.rank)


def _key(lane: Lane) -> tuple[str, int, Tower]:
    return (lane.resident.version_id, id(lane.resident.encoder), lane.tower)
