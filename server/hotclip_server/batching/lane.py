"""What waits for one tower of one version, by length and urgency."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush, heapreplace
from itertools import count

from hotclip_server.batching.cost import TowerCost, bucket_of
from hotclip_server.batching.entry import Entry
from hotclip_server.batching.ticket import Rank, Resident, Ticket
from hotclip_server.encoding.protocol import Prepared, Tower


class Flow:
    """Items of one request in one bucket, in the order in which they came."""

    __slots__ = ("entries", "ticket")

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.entries: deque[Entry] = deque()

    def head(self, now: float) -> Entry | None:
        """The first item that is still wanted."""
        entries = self.entries
        while entries:
            entry = entries[0]
            if entry.wanted(now):
                return entry
            entries.popleft()
            if entry.lane is not None:
                entry.lane.forget(entry)
        return None


class Bucket:
    """Waiting items of about the same length, those of the most urgent request first.

    longest: Tokens of the longest that was put in.
    waiting: Items that were not taken out.
    """

    def __init__(self) -> None:
        self.longest = 0
        self.waiting = 0
        self._flows: dict[Ticket, Flow] = {}
        self._heap: list[tuple[Rank, int, Flow]] = []
        self._numbers = count()  # first come, first served among equals

    def put(self, entry: Entry, ticket: Ticket) -> None:
        """Adds an item to those of a request; it may be among those of several."""
        if entry.length > self.longest:
            self.longest = entry.length
        flow = self._flows.get(ticket)
        if flow is None:
            flow = self._flows[ticket] = Flow(ticket)
            heappush(self._heap, (ticket.rank, next(self._numbers), flow))
        flow.entries.append(entry)

    def head(self, now: float) -> tuple[Rank, Flow, Entry] | None:
        """The most urgent item that is still wanted, and of which request it is."""
        heap = self._heap
        while heap:
            rank, number, flow = heap[0]
            entry = flow.head(now)
            if entry is None:
                heappop(heap)
                del self._flows[flow.ticket]
                continue
            # A request's rank only ever gets worse, with each turn that it had.
            latest = flow.ticket.rank
            if latest == rank:
                return rank, flow, entry
            heapreplace(heap, (latest, number, flow))
        return None


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

    def put(self, ticket: Ticket, index: int, prepared: Prepared, now: float) -> Entry | None:
        """Queues one item.

        Returns:
            The item, or None if it joined one that waits or runs already.
        """
        entry = self.shared.get(prepared.key)
        if entry is None or entry.prepared is None:
            number = bucket_of(prepared.length) if self.cost.padded else 0
            entry = Entry(self, number, prepared, ticket, index, now)
            self.shared[prepared.key] = entry
            ticket.entries.append(entry)
            bucket = self.buckets.get(number)
            if bucket is None:
                bucket = self.buckets[number] = Bucket()
            bucket.waiting += 1
            bucket.put(entry, ticket)
            return entry
        entry.join(ticket, index, now)
        ticket.entries.append(entry)
        ticket.begin(index)
        if entry.lane is not None:
            # It runs when the first of those who wait for it has its turn.
            self.buckets[entry.bucket].put(entry, ticket)
        return None

    def head(self, now: float) -> tuple[Rank, Entry] | None:
        """The most urgent item; forgets buckets that are empty."""
        best: tuple[Rank, Entry] | None = None
        for number, bucket in list(self.buckets.items()):
            head = bucket.head(now)
            if head is None:
                del self.buckets[number]
            elif best is None or head[0] < best[0]:
                best = (head[0], head[2])
        return best

    def take(self, entry: Entry) -> None:
        """Takes an item out to be run; who brings the same can still join it."""
        self.buckets[entry.bucket].waiting -= 1
        entry.lane = None

    def forget(self, entry: Entry) -> None:
        """An item is done with: nobody can join it any more."""
        if entry.lane is not None:
            self.take(entry)
        entry.prepared = None
        if self.shared.get(entry.key) is entry:
            del self.shared[entry.key]
