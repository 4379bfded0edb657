"""What waits for one tower of one version, by length and urgency."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count

from hotclip_server.batching.cost import TowerCost, bucket_of
from hotclip_server.batching.entry import Entry, Rank
from hotclip_server.batching.ticket import Resident, Ticket
from hotclip_server.encoding.protocol import Prepared, Tower


class Bucket:
    """Waiting items of about the same length, the most urgent first.

    longest: Tokens of the longest that was put in.
    """

    def __init__(self) -> None:
        self.longest = 0
        self._heap: list[tuple[Rank, int, Entry]] = []
        self._numbers = count()  # first come, first served among equals

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, entry: Entry) -> None:
        """Adds an item; again once it became more urgent."""
        if entry.length > self.longest:
            self.longest = entry.length
        heappush(self._heap, (entry.rank, next(self._numbers), entry))

    def head(self, now: float) -> Entry | None:
        """The most urgent item that is still wanted."""
        heap = self._heap
        while heap:
            entry = heap[0][2]
            if entry.wanted(now):
                return entry
            heappop(heap)
            if entry.lane is not None:
                entry.lane.forget(entry)
        return None

    def pop(self) -> None:
        """Removes what `head` gave."""
        heappop(self._heap)


class Lane:
    """Items of one tower of one version.

    shared: Every item that waits or runs, by its key: whoever brings the same joins it.
    buckets: By number, the shortest first; see `cost.bucket_of`.
    """

    def __init__(self, resident: Resident, tower: Tower, cost: TowerCost) -> None:
        self.resident = resident
        self.tower = tower
        self.cost = cost
        self.shared: dict[bytes, Entry] = {}
        self.buckets: dict[int, Bucket] = {}

    def put(
        self, ticket: Ticket, index: int, prepared: Prepared, rank: Rank, now: float
    ) -> Entry | None:
        """Queues one item.

        Returns:
            The item, or None if it joined one that waits or runs already.
        """
        entry = self.shared.get(prepared.key)
        if entry is None or entry.prepared is None:
            entry = Entry(self, prepared, rank, ticket, index, now)
            self.shared[prepared.key] = entry
            ticket.entries.append(entry)
            self._queue(entry)
            return entry
        entry.join(ticket, index, now)
        ticket.entries.append(entry)
        ticket.begin(index)
        if entry.lane is not None and rank < entry.rank:
            # The record that it has already is passed over once the item is taken.
            entry.rank = rank
            self._queue(entry)
        return None

    def head(self, now: float) -> Entry | None:
        """The most urgent item; forgets buckets that are empty."""
        best: Entry | None = None
        for number, bucket in list(self.buckets.items()):
            entry = bucket.head(now)
            if entry is None:
                del self.buckets[number]
            elif best is None or entry.rank < best.rank:
                best = entry
        return best

    def forget(self, entry: Entry) -> None:
        """An item is done with: nobody can join it any more."""
        entry.prepared = entry.lane = None
        if self.shared.get(entry.key) is entry:
            del self.shared[entry.key]

    def _queue(self, entry: Entry) -> None:
        entry.bucket = bucket_of(entry.length) if self.cost.padded else 0
        bucket = self.buckets.get(entry.bucket)
        if bucket is None:
            bucket = self.buckets[entry.bucket] = Bucket()
        bucket.put(entry)
