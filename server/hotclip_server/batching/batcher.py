"""Decides what runs when: takes items of many requests, forms batches, hands back rows.

Owned by the event loop: no locks, no polling. A batch closes only when the device is free
(late binding), so it holds everything that came meanwhile; an item that finds the device idle
runs at once. Where the device takes a second batch while one runs, that one is closed when
the first is predicted to end within the time of a launch, and not before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from hotclip_server.batching.admission import Admission
from hotclip_server.batching.backlog import RUNNING_S
from hotclip_server.batching.budget import Budget, Ledger
from hotclip_server.batching.cost import CostModel
from hotclip_server.batching.figures import BatchFigures
from hotclip_server.batching.filling import Batch
from hotclip_server.batching.isolate import Device, EncodeFailed, run_isolated
from hotclip_server.batching.queue import QueueSet
from hotclip_server.batching.ticket import Answer, Demand, Priority, Resident, Row, Ticket
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.errors import Unavailable

log = logging.getLogger(__name__)

TIMER_S = 2e-5
"""A timer that is due within this is due: clocks and timers round."""

Feed = Callable[[Ticket, range], Awaitable[None]]
"""Prepares the items at these positions of a request and puts them on the ticket, whose own
indices start at 0."""


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """Sizes of what the batcher holds."""

    max_batch: int = 0
    """Items of one batch at most; 0: what the engine does best."""
    unmeasured_batch: int = 32
    """Items of one batch as long as nothing is known of the engine."""
    budget: Budget
    """Items and bytes that may wait."""


class Flight:
    """A batch on the device.

    Args:
        batch: What it is.
        began: When it was handed to the device.
        ends: When it is predicted to end.
    """

    def __init__(self, batch: Batch, began: float, ends: float) -> None:
        self.batch = batch
        self.began = began
        self.ends = ends


class Batcher:
    """The one owner of the queues.

    Args:
        device: Runs batches.
        limits: Batch size and budgets.
        clock: Monotonic seconds; deadlines are on it.
        tell: Told whether anything is not answered, each time when that changes.
    """

    def __init__(
        self,
        device: Device,
        limits: BatchLimits,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._device = device
        self._clock = clock
        self._costs = CostModel(limits.unmeasured_batch, limits.max_batch)
        self._queues = QueueSet(self._costs)
        self._flights: list[Flight] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake_up: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tickets: set[Ticket] = set()
        self._stopped = False
        self._progress = clock()
        self._last_end = clock()
        self.figures = BatchFigures()
        self._admission = Admission(limits.budget, self._costs, self._queues, self._busy_s, tell)
        self.ledger: Ledger = self._admission.ledger

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

        demands = [Demand(item.tower, item.length, item.nbytes) for item in items]
        answer = await self.run(resident, demands, put, deadline=deadline, priority=priority)
        return answer.rows

    async def run(
        self,
        resident: Resident,
        demands: Sequence[Demand],
        feed: Feed,
        *,
        deadline: float | None,
        priority: Priority,
    ) -> Answer:
        """Admits a request, lets `feed` put its items, waits for the rows.

        A request over the budget is admitted in parts, one after the other. Once admitted,
        items are run unless their deadline has passed when their batch is closed: that they
        will be late is only predicted.

        Args:
            resident: The version that answers; the caller keeps it pinned.
            demands: What each item will take.
            feed: Puts the items; runs while earlier ones are encoded.
            deadline: On the batcher's clock.
            priority: Class of every item.

        Raises:
            Unavailable: the queue is full, the request would be late because of what waits
                before it, or the server is stopping.
            ResourceExhausted: an item can never fit.
            DeadlineExceeded: passed before the last item was taken into a batch.
        """
        rows: list[Row] = []
        queue_s = compute_s = 0.0
        for part in self.ledger.parts([demand.nbytes for demand in demands]):
            ticket = await self._admit(
                resident,
                demands[part.start : part.stop],
                deadline,
                priority,
                in_turn=part.start > 0,
            )
            try:
                await feed(ticket, part)
                answer = await ticket.answer()
            finally:
                ticket.cancel()
                self._tickets.discard(ticket)
            rows += answer.rows
            queue_s = max(queue_s, answer.queue_s)
            compute_s += answer.compute_s
        return Answer(rows=rows, queue_s=queue_s, compute_s=compute_s)

    def put(self, ticket: Ticket, items: Iterable[tuple[int, Prepared]]) -> None:
        """Queues items of a ticket and starts the device if it is idle."""
        if ticket.done:
            return
        now = self._clock()
        self.figures.shared += self._queues.put(ticket, items, now)
        if not self._flights and self._wake_up is None:
            self._progress = now
        self._wake()

    def retry_after_s(self) -> float:
        """About how long what waits takes, within [0.05, 5] seconds."""
        return self._admission.retry_after_s()

    def pressure_s(self) -> float:
        """Predicted seconds of what waits, at least RUNNING_S while anything is not answered. Any
        thread."""
        if not self.ledger.items:
            return 0.0
        return max(RUNNING_S, self._admission.backlog.total_s(Priority.BULK))

    def settle(self, ticket: Ticket, index: int, row: Row) -> None:
        """Answers an item that needs no device, e.g. an image that can't be read."""
        if not self._flights:  # else it is the device that has to move
            self._progress = self._clock()
        ticket.settle(index, row)

    def stalled_for_s(self) -> float:
        """Seconds since anything moved while work is waiting; 0.0 when nothing waits."""
        if not self._flights and not self.ledger.items:
            return 0.0
        return self._clock() - self._progress

    async def stop(self) -> None:
        """Refuses new work, fails what waits; the batch on the device is not awaited."""
        self._stopped = True
        self._disarm()
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        self._fail_all(_stopping())

    async def _admit(
        self,
        resident: Resident,
        demands: Sequence[Demand],
        deadline: float | None,
        priority: Priority,
        *,
        in_turn: bool,
    ) -> Ticket:
        now = self._clock()
        if not self.ledger.items and not self._flights:
            self._progress = now
        try:
            ticket = await self._admission.admit(
                resident, demands, deadline, priority, now, in_turn=in_turn
            )
        except Unavailable:
            self.figures.refused += 1
            raise
        if self._stopped:
            ticket.fail(_stopping())
        self._tickets.add(ticket)
        return ticket

    def _wake(self) -> None:
        # At the end of this turn of the loop: requests that come in one turn share a batch.
        if self._wake_up is None:
            self._wake_up = asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Closes batches as long as the device takes them."""
        self._disarm()
        if self._stopped:
            return
        try:
            while len(self._flights) < self._device.depth:
                now = self._clock()
                if self._flights:
                    last = self._flights[-1]
                    early_s = last.ends - now - last.batch.lane.cost.launch_s
                    if early_s > TIMER_S:
                        # Nothing that comes until then misses the next batch.
                        loop = asyncio.get_running_loop()
                        self._timer = loop.call_later(early_s, self._pump)
                        return
                batch = self._queues.take(now)
                if batch is None:
                    return
                self._launch(batch, now)
        except Exception as error:  # noqa: BLE001 - nobody else would notice that nothing runs
            self._broken(error)

    def _disarm(self) -> None:
        for handle in (self._wake_up, self._timer):
            if handle is not None:
                handle.cancel()
        self._wake_up = self._timer = None

    def _launch(self, batch: Batch, now: float) -> None:
        starts = max(now, self._flights[-1].ends) if self._flights else now
        flight = Flight(batch, now, starts + batch.seconds)
        self._flights.append(flight)
        task = asyncio.get_running_loop().create_task(self._fly(flight), name="hotclip-batch")
        self._tasks.add(task)
        task.add_done_callback(self._landed)

    async def _fly(self, flight: Flight) -> None:
        batch = flight.batch
        lane = batch.lane
        try:
            rows = await run_isolated(self._device, lane.resident.encoder, lane.tower, batch.items)
        finally:
            self._flights.remove(flight)
            self._queues.forget(batch)
        now = self._clock()
        began = max(flight.began, self._last_end)
        self._progress = self._last_end = now
        self._learn(batch, rows, now - began)
        self._pump()
        # The device gets its next batch before the rows of this one are handed out.
        await asyncio.sleep(0)
        self._settle(batch, rows, began, now - began)

    def _learn(self, batch: Batch, rows: list[Row], seconds: float) -> None:
        figures, cost = self.figures, batch.lane.cost
        failed = sum(isinstance(row, Exception) for row in rows)
        figures.count_batch(len(rows), failed, seconds)
        if batch.lane.tower is Tower.TEXT:
            figures.count_tokens(len(rows), batch.longest, batch.tokens, padded=cost.padded)
        if not failed:
            # A batch that was halved says nothing of what one takes.
            cost.observe(len(rows), batch.counted_length, seconds)

    def _settle(self, batch: Batch, rows: list[Row], began: float, seconds: float) -> None:
        for entry, row in zip(batch.entries, rows, strict=True):
            for ticket, index, since in entry.waiters:
                if not ticket.done:
                    waited_s = max(0.0, began - since)
                    self.figures.count_wait(waited_s)
                    ticket.ran(batch.number, waited_s, seconds)
                    ticket.settle(index, row)
            # The entry may be kept for its place; who waited, with all their rows, may not.
            entry.waiters.clear()
        log.debug(
            "batch of %d %s items of version %s in %.1f ms",
            len(rows),
            batch.lane.tower.value,
            batch.lane.resident.version_id,
            1000 * seconds,
        )

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken(error)
            self._wake()

    def _broken(self, error: BaseException) -> None:
        log.critical("the batch loop failed; this is a bug", exc_info=error)
        self._fail_all(EncodeFailed("the batch loop failed"))
        # What was half taken out of a queue would be joined and never run.
        self._queues.clear()

    def _busy_s(self, now: float) -> float:
        """Seconds until the device has ended what it was given, by prediction."""
        return max(0.0, self._flights[-1].ends - now) if self._flights else 0.0

    def _fail_all(self, error: Unavailable | EncodeFailed) -> None:
        for ticket in list(self._tickets):
            ticket.fail(error)


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping", retry_after_s=1.0, reason="SERVER_STOPPING")
