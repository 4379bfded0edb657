"""Why a collection can't be reindexed, or read: which points stand in the way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from hotclip_server.errors import DataLoss, FailedPrecondition, HotclipError

MOST_NAMED = 10
"""Points that an error names."""


def sources_missing(
    collection: str, total: int, missing: int, ids: Sequence[str], what: str
) -> FailedPrecondition:
    """Points without a source.

    Args:
        ids: Of the first of them.
        what: What is the matter with them, e.g. "were given as vectors".
    """
    return FailedPrecondition(
        f"{missing} of {total} points of collection {collection!r} {what}{_named(ids, missing)}",
        reason="SOURCES_MISSING",
        metadata={"points": str(missing), "ids": json.dumps(list(ids))},
    )


def source_unfit(errors: Mapping[str, HotclipError], version: str) -> FailedPrecondition:
    """Sources that the bound version took and another can't: it names those of one step.

    Args:
        errors: By point, at least one.
    """
    first, error = next(iter(errors.items()))
    ids = list(errors)[:MOST_NAMED]
    return FailedPrecondition(
        f"version {version} can't encode the source of {len(errors)} point(s)"
        f"{_named(ids, len(errors))}; of {first!r}: {error.message}",
        reason="SOURCE_UNFIT",
        metadata={"points": str(len(errors)), "ids": json.dumps(ids)},
    )


def source_damaged(errors: Mapping[str, HotclipError]) -> DataLoss:
    """Sources that the disk does not give back.

    Args:
        errors: By point, at least one.
    """
    first, error = next(iter(errors.items()))
    ids = list(errors)[:MOST_NAMED]
    return DataLoss(
        f"the source of {len(errors)} point(s){_named(ids, len(errors))} is lost: delete them, or "
        f"upsert them anew; of {first!r}: {error.message}",
        reason="SOURCE_DAMAGED",
        metadata={"points": str(len(errors)), "ids": json.dumps(ids)},
    )


def _named(ids: Sequence[str], count: int) -> str:
    names = ", ".join(map(repr, ids))
    return f" ({names}{', …' if count > len(ids) else ''})" if ids else ""
