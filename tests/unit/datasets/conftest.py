from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hotclip_server.datasets.records import DatasetLimits
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.storage.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    yield database
    database.close()


@pytest.fixture
def store(tmp_path: Path, database: Database) -> Iterator[DatasetStore]:
    with ThreadPoolExecutor(2) as executor:
        store = DatasetStore(tmp_path / "datasets", database, executor, DatasetLimits())
        store.open()
        yield store
