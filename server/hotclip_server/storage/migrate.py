"""Brings a database to the newest schema.

A revision is a file in `migrations/versions`. To make one, change `schema.py`, then write the
steps from the old to the new; `tests/unit/storage/test_migrate.py` compares both.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine


def upgrade(engine: Engine) -> None:
    """Applies every revision that `engine`'s database lacks, all in one transaction.

    Raises:
        RuntimeError: the database was made by a newer hotclip.
    """
    with engine.begin() as connection:
        config = _config(connection)
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        present = set(MigrationContext.configure(connection).get_current_heads())
        if not present <= known:
            raise RuntimeError(
                f"the database has schema revision {', '.join(sorted(present - known))}, which "
                "this version of hotclip does not know: it was made by a newer one"
            )
        command.upgrade(config, "head")


def _config(connection: Connection) -> Config:
    config = Config()
    folder = str(Path(__file__).with_name("migrations"))
    # Config interpolates per cent signs.
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
