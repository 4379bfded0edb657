"""How much may wait: items and bytes that are admitted and not yet answered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hotclip_server.errors import ResourceExhausted, Unavailable

# An over-budget request is admitted in parts of this share of the budget, so that one
# such request never needs the whole queue to itself.
PART_OF_BUDGET = 4


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that may wait."""

    items: int
    nbytes: int


class Ledger:
    """Books what waits against a budget. Event loop only.

    Args:
        budget: The most that may wait.
        retry_after_s: Says how long a refused caller should stay away, in seconds.
        tell: Told whether anything waits, each time when that changes.
    """

    def __init__(
        self, budget: Budget, retry_after_s: Callable[[], float], tell: Callable[[bool], None]
    ) -> None:
        self._budget = budget
        self._retry_after_s = retry_after_s
        self._tell = tell
        self._waiting: deque[tuple[asyncio.Future[None], int, int]] = deque()
        self.items = 0
        self.nbytes = 0

    def parts(self, sizes: Sequence[int]) -> list[range]:
        """Cuts a request into parts that are admitted one after the other.

        Args:
            sizes: Bytes of each item.

        Returns:
            One range of positions if the request fits the budget, else several.

        Raises:
            ResourceExhausted: an item alone is larger than the budget.
        """
        for position, size in enumerate(sizes):
            if size > self._budget.nbytes:
                raise ResourceExhausted(
                    f"item {position} needs {size} bytes, the queue holds {self._budget.nbytes}",
                    reason="ITEM_TOO_LARGE",
                )
        if len(sizes) <= self._budget.items and sum(sizes) <= self._budget.nbytes:
            return [range(len(sizes))]
        most_items = max(1, self._budget.items // PART_OF_BUDGET)
        most_bytes = self._budget.nbytes // PART_OF_BUDGET
        parts: list[range] = []
        start, held = 0, 0
        for position, size in enumerate(sizes):
            full = position - start >= most_items or held + size > most_bytes
            if full and position > start:
                parts.append(range(start, position))
                start, held = position, 0
            held += size
        parts.append(range(start, len(sizes)))
        return parts

    def take(self, items: int, nbytes: int) -> None:
        """Books items, or refuses at once.

        Raises:
            Unavailable: the queue is full, or somebody waits in line for room.
        """
        if self._waiting or not self._fits(items, nbytes):
            raise Unavailable(
                f"the queue is full: {self.items} items, {self.nbytes} bytes wait",
                retry_after_s=self._retry_after_s(),
                reason="QUEUE_FULL",
            )
        self._book(items, nbytes)

    async def take_in_turn(self, items: int, nbytes: int) -> None:
        """Books items as soon as there is room, first come, first served."""
        if not self._waiting and self._fits(items, nbytes):
            self._book(items, nbytes)
            return
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (room, items, nbytes)
        self._waiting.append(entry)
        try:
            await room
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._grant()
            elif not room.cancelled():
                # Granted in the same turn of the loop in which it was cancelled.
                self.give_back(items, nbytes)
            raise

    def give_back(self, items: int, nbytes: int) -> None:
        """Frees items that are answered, cancelled or expired."""
        self._book(-items, -nbytes)
        if self.items < 0 or self.nbytes < 0:
            raise RuntimeError("more was given back than taken; this is a bug")
        self._grant()

    def _fits(self, items: int, nbytes: int) -> bool:
        return (
            self.items + items <= self._budget.items and self.nbytes + nbytes <= self._budget.nbytes
        )

    def _book(self, items: int, nbytes: int) -> None:
        before = self.items
        self.items += items
        self.nbytes += nbytes
        if (self.items > 0) != (before > 0):
            self._tell(self.items > 0)

    def _grant(self) -> None:
        while self._waiting:
            room, items, nbytes = self._waiting[0]
            if not self._fits(items, nbytes):
                return
            self._waiting.popleft()
            if not room.done():
                self._book(items, nbytes)
                room.set_result(None)
