"""What operations on one model do, one after the other: live, previous, and what is known."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

Operation = tuple[str, str]
"""What is asked for, "activate", "rollback", "unload", "delete" or "load", and of which version."""
History = list[tuple[str, str]]
"""Live and previous version, of each revision."""
Outcome = tuple[History, set[str], list[bool]]
"""What came of operations: history, known versions, and which of them succeeded."""


def in_any_order(
    operations: Sequence[Operation],
    history: Sequence[tuple[str, str]],
    known: Collection[str],
    held: Collection[str],
) -> Iterator[Outcome]:
    """What may come of operations that are under way at once.

    Args:
        held: Versions that somebody retains.
    """
    for order in itertools.permutations(range(len(operations))):
        ends, there = list(history), set(known)
        succeeded = {at: _apply(operations[at], ends, there, held) for at in order}
        yield ends, there, [succeeded[at] for at in range(len(operations))]


def _apply(operation: Operation, history: History, known: set[str], held: Collection[str]) -> bool:
    what, version = operation
    live, previous = history[-1]
    if what == "load":
        known.add(version)
        return True
    if what == "rollback":
        if previous:
            history.append((previous, live))
        return bool(previous)
    if version not in known:
        return False
    if what == "activate":
        if version != live:
            history.append((version, live))
        return True
    if version == live or version in held or (what == "delete" and version == previous):
        return False
    if what == "delete":
        known.discard(version)
    elif version == previous:
        history.append((live, ""))
    return True
