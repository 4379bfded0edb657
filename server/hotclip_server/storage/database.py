"""The metadata database: SQLite in WAL mode, or any URL that SQLAlchemy takes.

All work of the event loop goes through `run`, on one thread of the database's own, so the
loop never waits for a disk. Other threads (jobs) use `transaction`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, event

from hotclip_server.storage.migrate import upgrade

T = TypeVar("T")


def now() -> datetime:
    """The present time, aware, in UTC."""
    return datetime.now(UTC)


class Database:
    """Owns the engine and one worker thread; `open` starts both.

    Args:
        url: SQLAlchemy URL, e.g. "sqlite:////data/hotclip.db".
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine: sa.Engine | None = None
        self._worker: ThreadPoolExecutor | None = None

    def open(self) -> None:
        """Connects and migrates the schema to the newest revision."""
        engine = sa.create_engine(self._url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_immediate)
        try:
            upgrade(engine)
        except BaseException:
            engine.dispose()
            raise
        self._engine = engine
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hotclip-db")

    def close(self) -> None:
        """Waits for running work and closes every connection."""
        if self._worker is not None:
            self._worker.shutdown(wait=True)
            self._worker = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction on the calling thread; commits at the end, else rolls back."""
        if self._engine is None:
            raise RuntimeError("the database is not open; this is a bug")
        with self._engine.begin() as connection:
            yield connection

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one transaction on the database's thread."""
        if self._worker is None:
            raise RuntimeError("the database is not open; this is a bug")
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._transact, work)

    def _transact(self, work: Callable[[Connection], T]) -> T:
        with self.transaction() as connection:
            return work(connection)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy's begin event opens transactions, not the driver.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    # A deferred transaction that reads, then writes, fails with SQLITE_BUSY at once when
    # another writer came between; an immediate one waits.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
