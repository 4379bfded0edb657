"""One admitted request: what it waits for and what came of each item."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hotclip_server.batching.backlog import Backlog, Place
from hotclip_server.batching.budget import Ledger
from hotclip_server.encoding.protocol import Encoder, Tower
from hotclip_server.errors import HotclipError

if TYPE_CHECKING:
    from hotclip_server.batching.entry import Entry

Row = NDArray[np.float32] | HotclipError
"""float32 of shape (dim,), or why there is none."""


Rank = tuple[int, int, float]
"""Class, round, due time; the smallest is next."""

HALF_A_TURN = 0.5
ROUNDING = 1e-6


class Priority(IntEnum):
    """How urgent a request is; a smaller number goes first."""

    INTERACTIVE = 0
    BULK = 1


class Resident(Protocol):
    """A version whose weights are on the device."""

    @property
    def version_id(self) -> str:
        """Names the version; a batch holds items of one."""

    @property
    def encoder(self) -> Encoder:
        """Its towers."""


class Demand(NamedTuple):
    """What an item will take, known or estimated before it is prepared."""

    tower: Tower
    length: int
    """Tokens of a text; 1 for an image."""
    nbytes: int
    """Held while it waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a request."""

    rows: list[Row]
    """One an item, in order."""
    queue_s: float
    """The longest that an item waited for its batch to begin, after it was prepared."""
    compute_s: float
    """Of the batches that its items ran in, each counted once."""


class Ticket:
    """Items are put as they are prepared. Event loop only.

    Args:
        resident: The version that answers every item.
        sizes: Bytes booked for each item.
        deadline: On the batcher's clock; None: never expires.
        place: Where its items stand.
        ledger: Where the items are booked.
        backlog: Where their predicted work is booked.
    """

    def __init__(
        self,
        resident: Resident,
        sizes: Sequence[int],
        deadline: float | None,
        place: Place,
        ledger: Ledger,
        backlog: Backlog,
    ) -> None:
        self.resident = resident
        self.deadline = deadline
        self.place = place
        self.rank: Rank = (place.priority, place.first_round, place.due)
        """Where its items stand now; only ever gets worse."""
        self.entries: list[Entry] = []
        self._ledger = ledger
        self._backlog = backlog
        self._sizes = list(sizes)
        self._rows: list[Row | None] = [None] * len(self._sizes)
        self._begun = bytearray(len(self._sizes))
        self._remaining = len(self._sizes)
        self._queue_s = 0.0
        self._compute_s = 0.0
        self._batch = 0
        self._turn = 0.0
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        backlog.add(place, len(self._sizes))
        if not self._remaining:
            self._answer.set_result(None)

    @property
    def done(self) -> bool:
        """Nobody waits any more: answered, failed or cancelled."""
        return self._answer.done()

    def charge(self, share: float) -> None:
        """An item ran that takes this share of a full batch. A full batch's worth is a turn."""
        self._turn += share
        if self._turn >= 1.0 - ROUNDING:
            self.stand_in(self.rank[1] + 1)

    def end_turn(self) -> None:
        """Its next item did not fit into a batch; the rest of a turn makes no good batch."""
        if self._turn > HALF_A_TURN:
            self.stand_in(self.rank[1] + 1)

    def stand_in(self, round_: int) -> None:
        """Goes on in a round, unless it is past it."""
        priority, now, due = self.rank
        if round_ > now:
            self.rank = (priority, round_, due)
            self._turn = 0.0

    async def answer(self) -> Answer:
        """Waits for every item.

        Raises:
            HotclipError: the request as a whole failed, e.g. its deadline passed.
        """
        await self._answer
        rows = [row for row in self._rows if row is not None]
        if len(rows) != len(self._sizes):
            raise RuntimeError("a request was answered with items missing; this is a bug")
        return Answer(rows=rows, queue_s=self._queue_s, compute_s=self._compute_s)

    def begin(self, index: int) -> None:
        """An item runs, or shares what runs: it is no work ahead of others any more."""
        if not self._begun[index] and not self.done:
            self._begun[index] = 1
            self._backlog.remove(self.place, index)

    def ran(self, batch: int, waited_s: float, seconds: float) -> None:
        """An item waited and then ran in a batch, by its number from 1 on."""
        if waited_s > self._queue_s:
            self._queue_s = waited_s
        if batch != self._batch:
            self._batch = batch
            self._compute_s += seconds

    def settle(self, index: int, row: Row) -> None:
        """Says what came of one item; ignored once nobody waits."""
        if self.done:
            return
        if self._rows[index] is not None:
            raise RuntimeError("an item was answered twice; this is a bug")
        self.begin(index)
        self._rows[index] = row
        self._remaining -= 1
        self._ledger.give_back(1, self._sizes[index])
        if not self._remaining:
            self.entries.clear()
            self._answer.set_result(None)

    def fail(self, error: HotclipError) -> None:
        """Fails the request as a whole and frees what it holds."""
        if not self.done:
            self._release()
            self._answer.set_exception(error)
            # A caller that went away never looks at it.
            self._answer.exception()

    def cancel(self) -> None:
        """The caller went away: drops every item that is not answered. Safe to repeat."""
        # Whoever cancels the waiting task has cancelled the answer already.
        if self._remaining:
            self._release()
            self._answer.cancel()

    def _release(self) -> None:
        left = [size for size, row in zip(self._sizes, self._rows, strict=True) if row is None]
        self._remaining = 0
        for entry in self.entries:
            entry.drop()
        self.entries.clear()
        for index, begun in enumerate(self._begun):
            if not begun:
                self._backlog.remove(self.place, index)
        self._ledger.give_back(len(left), sum(left))
