"""Which rows of sources name which blobs. Every function runs in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from hotclip_server.storage.schema import sources

_IDS_AT_ONCE = 500  # SQLite bounds the variables of a statement.


def used(connection: Connection) -> set[str]:
    """Blobs that a row names."""
    query = sa.select(sources.c.blob).where(sources.c.blob.is_not(None)).distinct()
    return set(connection.execute(query).scalars())


def count_of(connection: Connection, collection: str, ids: Sequence[str]) -> int:
    """How many of these points have a blob."""
    found = 0
    for start in range(0, len(ids), _IDS_AT_ONCE):
        query = sa.select(sa.func.count(sources.c.blob)).where(
            sources.c.collection == collection,
            sources.c.point_id.in_(ids[start : start + _IDS_AT_ONCE]),
        )
        found += connection.execute(query).scalar_one()
    return found


def points_of(connection: Connection, collection: str, blob: str) -> list[str]:
    """Points of a collection that were made of a blob, by id."""
    query = sa.select(sources.c.point_id).where(
        sources.c.collection == collection, sources.c.blob == blob
    )
    return sorted(connection.execute(query).scalars())  # SQL's order would read every row.
