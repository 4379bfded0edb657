"""What a request made is known for a day, and then forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, event

from hotclip_server.errors import InvalidArgument
from hotclip_server.jobs import store
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.storage import request_notes
from hotclip_server.storage.database import Database, now
from hotclip_server.storage.schema import requests


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    with database.transaction() as connection:
        yield connection
    database.close()


def make_older(connection: Connection, request_id: str, by: timedelta) -> None:
    """As if the request had come so long ago."""
    same = requests.c.request_id == request_id
    connection.execute(sa.update(requests).where(same).values(create_time=now() - by))


def kept(connection: Connection) -> set[str]:
    return set(connection.execute(sa.select(requests.c.request_id)).scalars())


def test_a_request_is_known_for_a_day_and_forgotten_with_the_next_one(
    connection: Connection,
) -> None:
    almost = request_notes.LIFETIME - timedelta(minutes=1)
    past = request_notes.LIFETIME + timedelta(minutes=1)
    for name in ("fresh", "old", "older"):
        request_notes.put(connection, "Make", name, "asked", f"made by {name}")
    make_older(connection, "old", almost)
    make_older(connection, "older", past)
    assert request_notes.find(connection, "Make", "old", "asked") == "made by old"
    with pytest.raises(InvalidArgument) as reused:
        request_notes.find(connection, "Make", "old", "something else")
    assert reused.value.reason == "REQUEST_ID_REUSED"
    # Out of time it counts for nothing, even while it is still stored.
    assert request_notes.find(connection, "Make", "older", "asked") is None
    assert request_notes.find(connection, "Make", "older", "something else") is None
    request_notes.put(connection, "Other", "next", "asked", "x")
    assert kept(connection) == {"fresh", "old", "next"}
    assert request_notes.find(connection, "Make", "next", "asked") is None


def test_a_day_later_the_same_id_makes_another_job(connection: Connection) -> None:
    wish = NewJob(kind=JobKind.EVALUATE, spec={}, request_id="r", fingerprint="asked")
    first, new = store.create(connection, wish)
    assert new
    assert store.create(connection, wish) == (first, False)
    make_older(connection, "r", request_notes.LIFETIME + timedelta(seconds=1))
    assert store.requested(connection, JobKind.EVALUATE, "r", "asked") is None
    second, new = store.create(connection, wish)
    assert new
    assert second.id != first.id
    assert store.create(connection, wish) == (second, False)


def test_forgetting_looks_at_no_other_rows(connection: Connection) -> None:
    """Every request forgets, so that must not read the whole table."""
    sent: list[tuple[str, Any]] = []

    @event.listens_for(connection, "before_cursor_execute")
    def _(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        sent.append((statement, parameters))

    request_notes.put(connection, "Make", "one", "asked", "x")
    deletions = [(what, values) for what, values in sent if what.startswith("DELETE")]
    assert deletions
    for what, values in deletions:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {what}", values).all()
        assert not [row.detail for row in plan if row.detail.startswith("SCAN")], plan
