"""What goes into a batch together with the item that it is closed for."""

from __future__ import annotations

from hotclip_server.batching.entry import Entry
from hotclip_server.batching.lane import Bucket, Lane
from hotclip_server.batching.ticket import Rank, Ticket
from hotclip_server.encoding.protocol import Prepared


class Batch:
    """Items that run together: of one tower of one version.

    Args:
        number: Counts batches from 1 on.
    """

    def __init__(self, lane: Lane, number: int) -> None:
        self.lane = lane
        self.number = number
        self.entries: list[Entry] = []
        self.items: list[Prepared] = []
        self.longest = 0
        self.tokens = 0
        self.seconds = lane.cost.launch_s
        """How long it takes, by prediction."""

    @property
    def counted_length(self) -> float:
        """Tokens that each item counts as."""
        return self.lane.cost.counted(len(self.items), self.longest, self.tokens)

    def added_s(self, length: int) -> float:
        """How much longer it takes with one more item."""
        cost = self.lane.cost
        if not cost.padded:
            return cost.item_s(length)
        if length <= self.longest:
            return cost.item_s(self.longest)
        alone_s = cost.item_s(length)
        return alone_s + len(self.items) * (alone_s - cost.item_s(self.longest))

    def fits(self, added_s: float) -> bool:
        """Whether an item that adds so much may be added; the first always may."""
        if not self.items:
            return True
        cost = self.lane.cost
        return len(self.items) < cost.most and self.seconds + added_s <= cost.full_s

    def add(self, entry: Entry, added_s: float, turn_of: Ticket) -> None:
        """Takes an item out of its queue.

        Args:
            added_s: Of this item.
            turn_of: Which of those who wait for it has its turn.
        """
        if entry.prepared is None:
            raise RuntimeError("nobody waits for this item; this is a bug")
        self.lane.take(entry)
        self.entries.append(entry)
        self.items.append(entry.prepared)
        self.longest = max(self.longest, entry.length)
        self.tokens += entry.length
        self.seconds += added_s
        for ticket, index, _ in entry.waiters:
            ticket.begin(index)
        turn_of.charge(self.lane.cost.turn_share(added_s))


class Riders:
    """Lets items of later classes and rounds into a batch, up to a time.

    Args:
        rank: Of the item that the batch is closed for.
        most_s: How much longer they may make it; None: as much as they like.
    """

    def __init__(self, rank: Rank, most_s: float | None) -> None:
        self._place = rank[:2]
        self._left_s = most_s

    def admit(self, rank: Rank, added_s: float) -> bool:
        """Whether an item may come in, though it adds so many seconds."""
        if self._left_s is None or rank[:2] <= self._place:
            return True
        if added_s > self._left_s:
            return False
        self._left_s -= added_s
        return True


def fill(batch: Batch, rank: Rank, own: int, now: float) -> None:
    """Fills a batch that begins with the head of a bucket, or has items already.

    Items of the same class and round, and more urgent ones, fill it. Later ones may ride along
    as long as they hold up the others no longer than a launch takes, which is what they save.
    Items of other lengths join where padding costs less than a batch of their own.

    Args:
        rank: Of the item that it is closed for.
        own: Number of its bucket.
    """
    lane = batch.lane
    riders = Riders(rank, lane.cost.launch_s if lane.cost.known else None)
    if own in lane.buckets:
        _move(lane.buckets[own], batch, riders, now)
    if len(lane.buckets) == 1:
        return
    for number in sorted(lane.buckets, key=lambda number: (abs(number - own), number)):
        bucket = lane.buckets[number]
        if number != own and bucket.waiting and joining_pays(batch, bucket):
            _move(bucket, batch, riders, now)


def joining_pays(batch: Batch, bucket: Bucket) -> bool:
    """Whether items of another length cost less in this batch than in one of their own."""
    cost = batch.lane.cost
    if not cost.padded:
        return True
    longest = max(batch.longest, bucket.longest)
    items = min(bucket.waiting, cost.most - len(batch.items))
    padded_s = cost.item_s(longest)
    padding_s = items * (padded_s - cost.item_s(bucket.longest))
    padding_s += len(batch.items) * (padded_s - cost.item_s(batch.longest))
    saved = 1.0 if items == bucket.waiting else items / cost.most_items(bucket.longest)
    return padding_s <= saved * cost.launch_s


def _move(bucket: Bucket, batch: Batch, riders: Riders, now: float) -> None:
    while (head := bucket.head(now)) is not None:
        rank, flow, entry = head
        added_s = batch.added_s(entry.length)
        if not batch.fits(added_s):
            flow.ticket.end_turn()
            return
        if batch.items and not riders.admit(rank, added_s):
            return
        batch.add(entry, added_s, flow.ticket)
