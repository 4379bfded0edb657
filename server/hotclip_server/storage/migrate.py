"""Brings a database to the newest schema.

A revision is a file in `migrations/versions`. To make one, change `schema.py`, then write the
steps from the old to the new and name it in `NEWEST`; `tests/unit/storage/test_migrate.py`
compares both ways. Alembic, which takes longer to import than a small database to make, is for
databases of older revisions.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from hotclip_server.storage.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

NEWEST = "0003"
"""The revision that `schema.py` describes."""
_revisions = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table, as it makes it."""


def upgrade(engine: Engine) -> None:
    """Brings `engine`'s database to the newest revision, all in one transaction.

    Raises:
        RuntimeError: the database was made by a newer hotclip.
    """
    with engine.begin() as connection:
        tables = sa.inspect(connection).get_table_names()
        if not tables:
            _create(connection)
        elif (present := _present(connection, tables)) != {NEWEST}:
            _migrate(connection, present)


def _create(connection: Connection) -> None:
    """What all revisions together make."""
    metadata.create_all(connection, checkfirst=False)
    _revisions.create(connection)
    connection.execute(_revisions.insert().values(version_num=NEWEST))


def _present(connection: Connection, tables: list[str]) -> set[str]:
    if _revisions.name not in tables:
        return set()
    return set(connection.scalars(sa.select(_revisions.c.version_num)))


def _migrate(connection: Connection, present: Set[str]) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    config = _config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if not present <= known:
        raise RuntimeError(
            f"the database has schema revision {', '.join(sorted(present - known))}, which "
            "this version of hotclip does not know: it was made by a newer one"
        )
    command.upgrade(config, "head")


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).with_name("migrations"))
    # Config interpolates per cent signs.
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
