"""One admitted request: what it waits for and what came of each item."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hotclip_server.batching.budget import Ledger
from hotclip_server.encoding.protocol import Encoder, Prepared
from hotclip_server.errors import HotclipError

Row = NDArray[np.float32] | HotclipError
"""float32 of shape (dim,), or why there is none."""


class Priority(Enum):
    """How urgent a request is."""

    INTERACTIVE = 1
    BULK = 2


class Resident(Protocol):
    """A version whose weights are on the device."""

    @property
    def version_id(self) -> str:
        """Names the version; a batch holds items of one."""

    @property
    def encoder(self) -> Encoder:
        """Its towers."""


class Entry:
    """One item in a queue. `prepared` is None once nobody waits for it."""

    __slots__ = ("arrival", "index", "prepared", "ticket")

    def __init__(self, ticket: Ticket, index: int, prepared: Prepared, arrival: float) -> None:
        self.ticket = ticket
        self.index = index
        self.prepared: Prepared | None = prepared
        self.arrival = arrival


class Ticket:
    """Made by `Batcher.admit`; items are put as they are prepared. Event loop only.

    Args:
        resident: The version that answers every item.
        sizes: Bytes booked for each item.
        deadline: On the batcher's clock; None: never expires.
        priority: Class of every item.
        ledger: Where the items are booked.
    """

    def __init__(
        self,
        resident: Resident,
        sizes: Sequence[int],
        deadline: float | None,
        priority: Priority,
        ledger: Ledger,
    ) -> None:
        self.resident = resident
        self.deadline = deadline
        self.priority = priority
        self.entries: list[Entry] = []
        self._ledger = ledger
        self._sizes = list(sizes)
        self._rows: list[Row | None] = [None] * len(self._sizes)
        self._remaining = len(self._sizes)
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._remaining:
            self._answer.set_result(None)

    @property
    def done(self) -> bool:
        """Nobody waits any more: answered, failed or cancelled."""
        return self._answer.done()

    async def answer(self) -> list[Row]:
        """Waits for every item; rows in the order of the request.

        Raises:
            HotclipError: the request as a whole failed, e.g. its deadline passed.
        """
        await self._answer
        rows = [row for row in self._rows if row is not None]
        if len(rows) != len(self._sizes):
            raise RuntimeError("a request was answered with items missing; this is a bug")
        return rows

    def settle(self, index: int, row: Row) -> None:
        """Says what came of one item; ignored once nobody waits."""
        if self.done:
            return
        if self._rows[index] is not None:
            raise RuntimeError("an item was answered twice; this is a bug")
        self._rows[index] = row
        self._remaining -= 1
        self._ledger.give_back(1, self._sizes[index])
        if not self._remaining:
            self.entries.clear()
            self._answer.set_result(None)

    def fail(self, error: HotclipError) -> None:
        """Fails the request as a whole and frees what it holds."""
        if not self.done:
            self._answer.set_exception(error)
            # A caller that went away never looks at it.
            self._answer.exception()
            self._release()

    def cancel(self) -> None:
        """The caller went away: drops every item that is not answered. Safe to repeat."""
        if self._remaining:
            self._answer.cancel()
            self._release()

    def _release(self) -> None:
        left = [size for size, row in zip(self._sizes, self._rows, strict=True) if row is None]
        self._remaining = 0
        for entry in self.entries:
            entry.prepared = None
        self.entries.clear()
        self._ledger.give_back(len(left), sum(left))
