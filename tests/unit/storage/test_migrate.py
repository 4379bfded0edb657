"""The migrations make exactly the tables of schema.py."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from hotclip_server.storage import migrate
from hotclip_server.storage.database import Database
from hotclip_server.storage.migrate import NEWEST, upgrade
from hotclip_server.storage.schema import metadata


@pytest.fixture
def url(tmp_path: Path) -> str:
    folder = tmp_path / "100% odd name"
    folder.mkdir()
    return f"sqlite:///{folder}/hotclip.db"


def revisions() -> Config:
    config = Config()
    folder = str(Path(migrate.__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def make_old(engine: sa.Engine, revision: str) -> None:
    """A database as an earlier hotclip left it."""
    with engine.begin() as connection:
        config = revisions()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def described(engine: sa.Engine) -> dict[str, Any]:
    """All that a database says of its tables."""
    found = sa.inspect(engine)
    return {
        table: {
            "columns": {c["name"]: {**c, "type": str(c["type"])} for c in found.get_columns(table)},
            "primary key": found.get_pk_constraint(table),
            "foreign keys": sorted(map(str, found.get_foreign_keys(table))),
            "unique": sorted(map(str, found.get_unique_constraints(table))),
            "indexes": sorted(map(told, found.get_indexes(table))),
            "checks": sorted(map(str, found.get_check_constraints(table))),
        }
        for table in found.get_table_names()
    }


def told(index: Any) -> str:
    """An index; the condition of a partial one is an object that compares to nothing."""
    options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
    return str({**index, "dialect_options": options})


def test_old_databases_become_what_new_ones_are(url: str) -> None:
    new = sa.create_engine(url)
    upgrade(new)
    expected = described(new)
    assert set(expected) == {*metadata.tables, "alembic_version"}
    script = ScriptDirectory.from_config(revisions())
    assert script.get_heads() == [NEWEST]
    for revision in [r.revision for r in script.walk_revisions()]:
        old = sa.create_engine(f"{url}.{revision}")
        make_old(old, revision)
        upgrade(old)
        assert described(old) == expected
        with old.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert context.get_current_heads() == (NEWEST,)
            assert compare_metadata(context, metadata) == []
        old.dispose()
    with new.connect() as connection:
        assert MigrationContext.configure(connection).get_current_heads() == (NEWEST,)
    new.dispose()


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
    make_old(engine, "0001")
    upgrade(engine)
    engine.dispose()
    assert (root.level, list(root.handlers), logging.getLogger("hotclip").disabled) == before
