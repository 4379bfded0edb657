"""The migrations make exactly the tables of schema.py."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from hotclip_server.storage.database import Database
from hotclip_server.storage.migrate import upgrade
from hotclip_server.storage.schema import metadata


@pytest.fixture
def url(tmp_path: Path) -> str:
    folder = tmp_path / "100% odd name"
    folder.mkdir()
    return f"sqlite:///{folder}/hotclip.db"


def test_the_newest_revision_is_the_schema(url: str) -> None:
    engine = sa.create_engine(url)
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_upgrading_twice_changes_nothing(url: str) -> None:
    for _ in range(2):
        database = Database(url)
        database.open()
        with database.transaction() as connection:
            names = sa.inspect(connection).get_table_names()
        database.close()
    assert set(names) == {*metadata.tables, "alembic_version"}


def test_a_database_of_a_newer_release_is_refused(url: str) -> None:
    engine = sa.create_engine(url)
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'f00d'"))
    with pytest.raises(RuntimeError, match=r"f00d.*newer"):
        upgrade(engine)
    engine.dispose()


def test_a_failed_revision_leaves_nothing(url: str) -> None:
    # A table in the way makes the initial revision fail half-way.
    database = Database(url)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE job_events (id INTEGER)"))
    engine.dispose()
    with pytest.raises(sa.exc.OperationalError):
        database.open()
    engine = sa.create_engine(url)
    assert sa.inspect(engine).get_table_names() == ["job_events"]
    engine.dispose()


def test_upgrading_leaves_logging_alone(url: str) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("hotclip").disabled)
    engine = sa.create_engine(url)
    upgrade(engine)
    engine.dispose()
    assert (root.level, list(root.handlers), logging.getLogger("hotclip").disabled) == before
