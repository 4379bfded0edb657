"""Which items run next: a queue a version and tower, oldest head first."""

from __future__ import annotations

from collections import deque

from hotclip_server.batching.ticket import Entry, Priority, Resident
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import DeadlineExceeded

BULK_WAITS_S = 1.0
"""A bulk item counts as this much younger than it is, so it runs behind interactive items
that came at the same time and never starves: it ages like every other."""


class TowerQueue:
    """Items of one tower of one version, in two classes."""

    def __init__(self, resident: Resident, tower: Tower) -> None:
        self.resident = resident
        self.tower = tower
        self._classes: dict[Priority, deque[Entry]] = {p: deque() for p in Priority}

    def put(self, entry: Entry) -> None:
        """Appends an item to its class."""
        self._classes[entry.ticket.priority].append(entry)

    def drop_dead(self, now: float) -> None:
        """Removes cancelled and expired items from the heads."""
        for entries in self._classes.values():
            while entries and _is_dead(entries[0], now):
                entries.popleft()

    def head(self) -> tuple[float, Priority] | None:
        """Effective arrival and class of the item that is next; None: empty."""
        heads = [
            (entries[0].arrival + (BULK_WAITS_S if priority is Priority.BULK else 0.0), priority)
            for priority, entries in self._classes.items()
            if entries
        ]
        return min(heads, key=lambda head: head[0], default=None)

    def take(self, most: int, now: float) -> list[Entry]:
        """Removes up to `most` live items, in order."""
        batch: list[Entry] = []
        while len(batch) < most:
            self.drop_dead(now)
            head = self.head()
            if head is None:
                break
            batch.append(self._classes[head[1]].popleft())
        return batch


class QueueSet:
    """All queues of a server. No torch, no clock of its own."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, int, Tower], TowerQueue] = {}

    def put(self, entry: Entry, tower: Tower) -> None:
        """Queues one item."""
        resident = entry.ticket.resident
        # The same version loaded a second time is another encoder: a batch runs on one.
        key = (resident.version_id, id(resident.encoder), tower)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = TowerQueue(resident, tower)
        queue.put(entry)

    def take(self, most: int, now: float) -> tuple[TowerQueue, list[Entry]] | None:
        """Closes the next batch: the queue whose head is oldest, up to `most` items of it.

        Returns:
            The queue and its items, all of one version and tower; None: nothing waits.
        """
        best: tuple[float, TowerQueue] | None = None
        for key, queue in list(self._queues.items()):
            queue.drop_dead(now)
            head = queue.head()
            if head is None:
                # An empty queue would keep its version's weights alive.
                del self._queues[key]
            elif best is None or head[0] < best[0]:
                best = (head[0], queue)
        if best is None:
            return None
        return best[1], best[1].take(most, now)


def _is_dead(entry: Entry, now: float) -> bool:
    ticket = entry.ticket
    if ticket.deadline is not None and now >= ticket.deadline:
        ticket.fail(DeadlineExceeded("the deadline passed while the request waited"))
    return entry.prepared is None
