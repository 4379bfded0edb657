"""Decides what runs when: takes items of many requests, forms batches, hands back rows.

Owned by the event loop: no locks, no timer, no polling. A batch closes only when the device
is free (late binding), so it holds everything that came meanwhile; an item that finds the
device idle runs at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from hotclip_server.batching.budget import Budget, Ledger
from hotclip_server.batching.isolate import Device, EncodeFailed, run_isolated
from hotclip_server.batching.queue import QueueSet
from hotclip_server.batching.ticket import Entry, Priority, Resident, Row, Ticket
from hotclip_server.encoding.protocol import Prepared
from hotclip_server.errors import DeadlineExceeded, Unavailable

log = logging.getLogger(__name__)

Feed = Callable[[Ticket, range], Awaitable[None]]
"""Prepares the items at these positions of a request and puts them on the ticket, whose own
indices start at 0."""


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """Sizes of what the batcher holds."""

    max_batch: int = 64
    """Items of one batch."""
    budget: Budget
    """Items and bytes that may wait."""


@dataclass(kw_only=True)
class BatchFigures:
    """Counts since the start."""

    batches: int = 0
    items: int = 0
    failed_items: int = 0
    largest_batch: int = 0


class Batcher:
    """The one owner of the queues.

    Args:
        device: Runs one batch at a time.
        limits: Batch size and budgets.
        clock: Monotonic seconds; deadlines are on it.
    """

    def __init__(
        self, device: Device, limits: BatchLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._device = device
        self._limits = limits
        self._clock = clock
        self._queues = QueueSet()
        self._driver: asyncio.Task[None] | None = None
        self._tickets: set[Ticket] = set()
        self._stopped = False
        self._progress = clock()
        self._items_per_s = 0.0
        self.ledger = Ledger(limits.budget, self.retry_after_s)
        self.figures = BatchFigures()

    async def encode(
        self,
        resident: Resident,
        items: Sequence[Prepared],
        *,
        deadline: float | None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> list[Row]:
        """Encodes items that are prepared already; see `run` for errors.

        Returns:
            One row or error an item, in order.
        """

        async def put(ticket: Ticket, part: range) -> None:
            self.put(ticket, ((i, items[at]) for i, at in enumerate(part)))

        sizes = [item.nbytes for item in items]
        return await self.run(resident, sizes, put, deadline=deadline, priority=priority)

    async def run(
        self,
        resident: Resident,
        sizes: Sequence[int],
        feed: Feed,
        *,
        deadline: float | None,
        priority: Priority,
    ) -> list[Row]:
        """Admits a request, lets `feed` put its items, waits for the rows.

        A request over the budget is admitted in parts, one after the other.

        Args:
            resident: The version that answers; the caller keeps it pinned.
            sizes: Bytes that each item holds while it waits.
            feed: Puts the items; runs while earlier ones are encoded.
            deadline: On the batcher's clock.
            priority: Class of every item.

        Returns:
            One row or error an item, in order.

        Raises:
            Unavailable: the queue is full, or the server is stopping.
            ResourceExhausted: an item can never fit.
            DeadlineExceeded: passed before the last item was taken into a batch.
        """
        rows: list[Row] = []
        for part in self.ledger.parts(sizes):
            part_sizes = sizes[part.start : part.stop]
            ticket = await self._admit(
                resident, part_sizes, deadline, priority, in_turn=part.start > 0
            )
            try:
                await feed(ticket, part)
                rows += await ticket.answer()
            finally:
                ticket.cancel()
                self._tickets.discard(ticket)
        return rows

    def put(self, ticket: Ticket, items: Iterable[tuple[int, Prepared]]) -> None:
        """Queues items of a ticket and starts the device if it is idle."""
        if ticket.done:
            return
        now = self._clock()
        for index, prepared in items:
            entry = Entry(ticket, index, prepared, now)
            ticket.entries.append(entry)
            self._queues.put(entry, prepared.tower)
        if self._driver is None or self._driver.done():
            self._progress = now
            self._driver = asyncio.get_running_loop().create_task(
                self._drive(), name="hotclip-batches"
            )
            self._driver.add_done_callback(self._driver_done)

    def settle(self, ticket: Ticket, index: int, row: Row) -> None:
        """Answers an item that needs no device, e.g. an image that can't be read."""
        self._progress = self._clock()
        ticket.settle(index, row)

    def stalled_for_s(self) -> float:
        """Seconds since anything moved while work is waiting; 0.0 when nothing waits."""
        if self._driver is None and not self.ledger.items:
            return 0.0
        return self._clock() - self._progress

    def retry_after_s(self) -> float:
        """About how long the present queue takes, within [0.05, 5] seconds."""
        if not self._items_per_s:
            return 0.5
        return min(5.0, max(0.05, self.ledger.items / self._items_per_s))

    async def stop(self) -> None:
        """Refuses new work, fails what waits; the batch on the device is not awaited."""
        self._stopped = True
        driver = self._driver
        if driver is not None:
            driver.cancel()
            await asyncio.wait([driver])
        self._fail_all(_stopping())

    async def _admit(
        self,
        resident: Resident,
        sizes: Sequence[int],
        deadline: float | None,
        priority: Priority,
        *,
        in_turn: bool,
    ) -> Ticket:
        now = self._clock()
        if deadline is not None and now >= deadline:
            raise DeadlineExceeded("the deadline passed before the request was admitted")
        if not self.ledger.items and self._driver is None:
            self._progress = now
        if in_turn:
            await self.ledger.take_in_turn(len(sizes), sum(sizes))
        else:
            self.ledger.take(len(sizes), sum(sizes))
        ticket = Ticket(resident, sizes, deadline, priority, self.ledger)
        if self._stopped:
            ticket.fail(_stopping())
        self._tickets.add(ticket)
        return ticket

    async def _drive(self) -> None:
        while True:
            taken = self._queues.take(self._limits.max_batch, self._clock())
            if taken is None:
                return
            queue, entries = taken
            await self._run_batch(queue.resident, entries)

    async def _run_batch(self, resident: Resident, entries: list[Entry]) -> None:
        started = self._clock()
        live = [(entry, entry.prepared) for entry in entries if entry.prepared is not None]
        batch = [prepared for _, prepared in live]
        tower = batch[0].tower
        rows = await run_isolated(self._device, resident.encoder, tower, batch)
        ended = self._clock()
        self._progress = ended
        for (entry, _), row in zip(live, rows, strict=True):
            entry.prepared = None
            entry.ticket.settle(entry.index, row)
        self._count(rows, ended - started)
        log.debug(
            "batch of %d %s items of version %s in %.1f ms",
            len(batch),
            tower.value,
            resident.version_id,
            1000 * (ended - started),
        )

    def _count(self, rows: list[Row], seconds: float) -> None:
        figures = self.figures
        figures.batches += 1
        figures.items += len(rows)
        figures.failed_items += sum(isinstance(row, Exception) for row in rows)
        figures.largest_batch = max(figures.largest_batch, len(rows))
        rate = len(rows) / max(seconds, 1e-6)
        self._items_per_s = 0.8 * self._items_per_s + 0.2 * rate if self._items_per_s else rate

    def _driver_done(self, driver: asyncio.Task[None]) -> None:
        if self._driver is driver:
            self._driver = None
        if driver.cancelled() or driver.exception() is None:
            return
        log.critical("the batch loop failed; this is a bug", exc_info=driver.exception())
        self._fail_all(EncodeFailed("the batch loop failed"))

    def _fail_all(self, error: Unavailable | EncodeFailed) -> None:
        for ticket in list(self._tickets):
            ticket.fail(error)


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping", retry_after_s=1.0, reason="SERVER_STOPPING")
