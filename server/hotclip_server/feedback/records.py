"""Rows of choices. Every function runs in the caller's transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from hotclip_server.errors import InvalidArgument
from hotclip_server.jobs.store import aware
from hotclip_server.search.records import DELETED, SourceRow
from hotclip_server.storage.schema import feedback, sources

_IDS_AT_ONCE = 500  # SQLite bounds the variables of a statement.


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A text that somebody searched with, and the point that they took; the time is in UTC."""

    query: str
    point_id: str
    time: datetime
    request_id: str = ""
    revision: int = 0
    """Of the point when it was taken: it holds the same as long as it has this one."""
    content: str = ""
    """`content_of` the point when it was taken; empty also if it was not known."""
    seq: int = 0
    """Grows with every choice that is kept."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A span of time, from `start` on and before `end`; None does not bind."""

    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise InvalidArgument.field("window.end_time", "is not after start_time")


def count(connection: Connection) -> int:
    """Choices of all collections."""
    return connection.execute(sa.select(sa.func.count()).select_from(feedback)).scalar_one()


def known_requests(connection: Connection, collection: str, request_ids: Sequence[str]) -> set[str]:
    """Which of these request ids a kept choice has."""
    found: set[str] = set()
    for start in range(0, len(request_ids), _IDS_AT_ONCE):
        query = sa.select(feedback.c.request_id).where(
            feedback.c.collection == collection,
            feedback.c.request_id.in_(request_ids[start : start + _IDS_AT_ONCE]),
        )
        found.update(connection.execute(query).scalars())
    return found


def insert(connection: Connection, collection: str, choices: Sequence[Choice]) -> None:
    """Adds choices, in order."""
    if choices:
        connection.execute(
            sa.insert(feedback),
            [
                {
                    "collection": collection,
                    "query": choice.query,
                    "point_id": choice.point_id,
                    "revision": choice.revision,
                    "content": choice.content or None,
                    "time": choice.time,
                    "request_id": choice.request_id or None,
                }
                for choice in choices
            ],
        )


def newest(
    connection: Connection,
    collection: str,
    window: Window,
    *,
    limit: int,
    before: tuple[datetime, int] | None = None,
) -> list[Choice]:
    """Choices of a window, newest first, after the one with the key `before` (time, seq)."""
    columns = (feedback.c.time, feedback.c.seq)
    query = sa.select(feedback).where(*_within(collection, window))
    if before is not None:
        query = query.where(sa.tuple_(*columns) < sa.tuple_(*before))
    query = query.order_by(*(column.desc() for column in columns)).limit(limit)
    return [
        Choice(
            query=row.query,
            point_id=row.point_id,
            time=aware(row.time),
            request_id=row.request_id or "",
            revision=row.revision,
            content=row.content or "",
            seq=row.seq,
        )
        for row in connection.execute(query)
    ]


def delete(connection: Connection, collection: str, window: Window) -> int:
    """Forgets the choices of a window; returns how many there were."""
    return connection.execute(sa.delete(feedback).where(*_within(collection, window))).rowcount


def sources_of(
    connection: Connection, collection: str, point_ids: Sequence[str]
) -> dict[str, SourceRow]:
    """What points were made of, by id; without payloads, and without points that are gone."""
    query = sa.select(
        sources.c.point_id, sources.c.revision, sources.c.kind, sources.c.item, sources.c.blob
    ).where(
        sources.c.collection == collection,
        sources.c.point_id.in_(point_ids),
        sources.c.kind != DELETED,
    )
    return {
        row.point_id: SourceRow(
            point_id=row.point_id,
            revision=row.revision,
            kind=row.kind,
            item=row.item,
            blob=row.blob,
            payload={},
        )
        for row in connection.execute(query)
    }


def content_of(row: SourceRow) -> str:
    """sha256 of the image that a point holds, as it is stored, hex; empty if it holds none."""
    if row.kind != "image":
        return ""
    return row.blob or hashlib.sha256(row.item or b"").hexdigest()


def contents_of(
    connection: Connection, collection: str, revisions: Mapping[str, int]
) -> dict[str, str]:
    """`content_of` points by id; without those that have another revision by now.

    Args:
        revisions: Of the points, by id.
    """
    found = sources_of(connection, collection, list(revisions))
    return {
        point_id: content_of(row)
        for point_id, row in found.items()
        if row.revision == revisions[point_id]
    }


def _within(collection: str, window: Window) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = [feedback.c.collection == collection]
    if window.start is not None:
        conditions.append(feedback.c.time >= window.start)
    if window.end is not None:
        conditions.append(feedback.c.time < window.end)
    return conditions
