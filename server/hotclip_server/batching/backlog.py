"""Predicted work that was admitted and has not begun, by its place in the order."""

from __future__ import annotations

from collections.abc import Sequence

RUNNING_S = 0.001
"""What is told of waiting while nothing waits and something runs."""

DUE_STEP_S = 0.05
"""Work due within this span counts as one place."""


class Place:
    """Where the items of one request stand among all that wait.

    Args:
        priority: Class of every item; a smaller number goes first.
        first_round: Round of the first item; one full batch's worth of items is a round.
        per_round: Items of a round.
        due: By when it ought to run; orders requests within a round.
        item_s: Predicted seconds of an item.
    """

    __slots__ = ("due", "due_step", "first_round", "item_ns", "per_round", "priority")

    def __init__(
        self, priority: int, first_round: int, per_round: int, due: float, item_s: float
    ) -> None:
        self.priority = priority
        self.first_round = first_round
        self.per_round = per_round
        self.due = due
        self.due_step = int(due / DUE_STEP_S)
        # Whole nanoseconds: what is added and taken away again leaves exactly nothing.
        self.item_ns = round(1e9 * item_s)

    def round_of(self, index: int) -> int:
        """The round of an item of the request."""
        return self.first_round + index // self.per_round


class Backlog:
    """Sums of predicted work by class, round and due time. Event loop only.

    Args:
        classes: How many classes there are.
    """

    def __init__(self, classes: int) -> None:
        self._places: Sequence[dict[tuple[int, int], int]] = tuple({} for _ in range(classes))
        self._total_ns = [0] * classes

    def add(self, place: Place, items: int) -> None:
        """Books all items of a request."""
        for start in range(0, items, place.per_round):
            count = min(place.per_round, items - start)
            self._change(place, place.round_of(start), count * place.item_ns)

    def remove(self, place: Place, index: int) -> None:
        """Takes one item off: it began, or nobody waits for it."""
        self._change(place, place.round_of(index), -place.item_ns)

    def total_s(self, priority: int) -> float:
        """Everything of a class and of more urgent ones."""
        return 1e-9 * sum(self._total_ns[: priority + 1])

    def ahead_s(self, place: Place, items: int) -> float:
        """What runs before the last of the items of a request, were it admitted now."""
        last = (place.round_of(max(0, items - 1)), place.due_step)
        same = sum(ns for at, ns in self._places[place.priority].items() if at <= last)
        return 1e-9 * (same + sum(self._total_ns[: place.priority]))

    def _change(self, place: Place, round_: int, ns: int) -> None:
        if not ns:
            return
        places = self._places[place.priority]
        at = (round_, place.due_step)
        left = places.get(at, 0) + ns
        self._total_ns[place.priority] += ns
        if left:
            places[at] = left
        else:
            del places[at]
