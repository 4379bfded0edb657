"""Rows of drift reports, and samples of rows of others. In the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from hotclip_proto.v1.drift_pb2 import DriftReport
from hotclip_server.search import records as search_records
from hotclip_server.search.records import DELETED, SourceRow
from hotclip_server.storage.schema import drift_reports, feedback, sources

_COLUMNS = (
    *(sources.c.point_id, sources.c.revision, sources.c.kind),
    *(sources.c.item, sources.c.blob),
)


def put_report(connection: Connection, report: DriftReport) -> None:
    """Stores the report of a job, instead of one that an earlier attempt left."""
    connection.execute(sa.delete(drift_reports).where(drift_reports.c.job_id == report.job))
    values = {"job_id": report.job, "report": report.SerializeToString()}
    connection.execute(sa.insert(drift_reports).values(values))


def find_report(connection: Connection, job_id: str) -> DriftReport | None:
    """The report of a job; None if it has none."""
    query = sa.select(drift_reports.c.report).where(drift_reports.c.job_id == job_id)
    stored = connection.execute(query).scalar_one_or_none()
    return None if stored is None else DriftReport.FromString(stored)


def kinds(connection: Connection, collection: str) -> dict[str, int]:
    """Points of a collection that keeps sources, by kind."""
    query = (
        sa.select(sources.c.kind, sa.func.count())
        .where(sources.c.collection == collection, sources.c.kind != DELETED)
        .group_by(sources.c.kind)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def rows_from(
    connection: Connection, collection: str, revisions: Sequence[int]
) -> Iterator[SourceRow]:
    """The first row of a collection from each revision on, without payload; none after the last."""
    for revision in revisions:
        query = (
            sa.select(*_COLUMNS)
            .where(
                sources.c.collection == collection,
                sources.c.revision >= revision,
                sources.c.kind != DELETED,
            )
            .order_by(sources.c.revision)
            .limit(1)
        )
        row = connection.execute(query).first()
        if row is not None:
            yield _plain(row)


def all_rows(connection: Connection, collection: str, most: int) -> list[SourceRow]:
    """Rows of a collection, oldest first, without payloads."""
    return [_plain(row) for row in search_records.sources_after(connection, collection, -1, most)]


def recorded_queries(connection: Connection, collections: Sequence[str], most: int) -> list[str]:
    """What was searched with lately in some collections, each once."""
    query = (
        sa.select(feedback.c.query)
        .where(feedback.c.collection.in_(collections))
        .order_by(feedback.c.time.desc(), feedback.c.seq.desc())
        .limit(4 * most)
    )
    return list(dict.fromkeys(connection.execute(query).scalars()))[:most]


def _plain(row: Any) -> SourceRow:
    return SourceRow(
        point_id=row.point_id,
        revision=row.revision,
        kind=row.kind,
        item=row.item,
        blob=row.blob,
        payload={},
    )
