"""What a crash leaves between the files of a version and its row in the database.

A stored version has a mark beside its files until its row is there, and again before its row
goes. What is marked at the start and has no row is of no use to anybody. A version without a mark
is never removed, also if the database knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

MARK = "hotclip_unrecorded"


def mark(folder: Path) -> None:
    """The version of this folder has no row, or is about to lose it."""
    (folder / MARK).touch()


def unmark(folder: Path) -> None:
    """It has one."""
    (folder / MARK).unlink(missing_ok=True)


def lost(root: Path, recorded: Collection[str]) -> list[str]:
    """Ids of versions that have a mark and no row; what has a row loses its mark.

    Args:
        recorded: Ids of those that have one.
    """
    found = []
    for folder in sorted(path.parent for path in root.glob(f"*/{MARK}")):
        if folder.name in recorded:
            unmark(folder)
        else:
            found.append(folder.name)
    return found
