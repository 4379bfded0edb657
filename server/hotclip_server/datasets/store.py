"""Keeps datasets: one folder each, named by content, and a row in the database."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from hotclip_server.datasets.records import DatasetCounts, DatasetLimits, DatasetRecord
from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.datasets.upload import DatasetUpload, Staged
from hotclip_server.errors import AlreadyExists, FailedPrecondition, NotFound
from hotclip_server.jobs import store as job_store
from hotclip_server.jobs.states import ACTIVE
from hotclip_server.storage.atomic import publish_folder, remove_leftovers
from hotclip_server.storage.database import Database, now
from hotclip_server.storage.schema import datasets

P = ParamSpec("P")
T = TypeVar("T")


class DatasetStore:
    """Methods are for the event loop, but for `open` and `load`, which block.

    A job that reads a dataset names its id in `spec["datasets"]`; while it is queued or
    works, the dataset is not deleted.

    Args:
        root: Folder of the datasets, made by `open`.
        executor: Decodes and writes; the CPU pool.
    """

    def __init__(
        self, root: Path, database: Database, executor: Executor, limits: DatasetLimits
    ) -> None:
        self._root = root
        self._database = database
        self._executor = executor
        self._limits = limits
        # Between the folder and the row nobody may delete or store the same content.
        self._changing = asyncio.Lock()

    def open(self) -> None:
        """Removes what a crash left: unfinished uploads, and folders without a row."""
        self._root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._root)
        with self._database.transaction() as connection:
            known = set(connection.execute(sa.select(datasets.c.id)).scalars())
        for folder in self._root.glob("ds-*"):
            if folder.name not in known:
                shutil.rmtree(folder)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs blocking work on the executor."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: work(*args, **kwargs))

    async def begin(self) -> DatasetUpload:
        """Starts an upload; end it with `commit` or with its `discard`.

        Raises:
            ResourceExhausted: the disk is full.
        """
        making = self._executor.submit(DatasetUpload, self._root, self._limits)
        try:
            return await asyncio.wrap_future(making)
        except asyncio.CancelledError:
            # A thread that has begun makes it all the same.
            making.add_done_callback(_discard)
            raise

    async def commit(self, upload: DatasetUpload, name: str, description: str) -> DatasetRecord:
        """Checks and stores an upload; the same content under the same name gives the same.

        Raises:
            InvalidArgument: names the bad rows.
            AlreadyExists: the name belongs to other content, or the content to another name.
            ResourceExhausted: the disk is full.
        """
        staged = await self.run(upload.finish)
        try:
            async with self._changing:
                record, is_new = await self._database.run(
                    lambda c: _find_same(c, staged, name, description)
                )
                if is_new:
                    final = self._root / staged.dataset_id
                    await self.run(publish_folder, staged.folder, final)
                    await self._database.run(lambda c: _insert(c, record))
                return record
        finally:
            await self.run(shutil.rmtree, staged.folder, ignore_errors=True)

    async def get(self, dataset: str) -> DatasetRecord:
        """By id or name. Raises NotFound."""
        return await self._database.run(lambda c: _get(c, dataset))

    async def list(
        self, *, limit: int, before: tuple[datetime, str] | None = None
    ) -> list[DatasetRecord]:
        """Newest first, those older than `before` (creation time, id)."""

        def read(connection: Connection) -> list[DatasetRecord]:
            columns = (datasets.c.create_time, datasets.c.id)
            query = sa.select(datasets).order_by(*(c.desc() for c in columns)).limit(limit)
            if before is not None:
                query = query.where(sa.tuple_(*columns) < sa.tuple_(*before))
            return [_record(row) for row in connection.execute(query)]

        return await self._database.run(read)

    async def delete(self, dataset: str) -> None:
        """Removes a dataset.

        Raises:
            NotFound: there is none.
            FailedPrecondition: a job needs it; reason DATASET_IN_USE.
        """
        async with self._changing:
            record = await self._database.run(lambda c: _delete(c, dataset))
            await self.run(shutil.rmtree, self._root / record.id)

    def load(self, dataset_id: str) -> StoredDataset:
        """Opens a dataset for reading; blocks; any thread.

        Raises:
            NotFound: there is none.
            DataLoss: it is damaged.
        """
        with self._database.transaction() as connection:
            record = _get(connection, dataset_id)
        return StoredDataset(self._root / record.id)


def _find_same(
    connection: Connection, staged: Staged, name: str, description: str
) -> tuple[DatasetRecord, bool]:
    """The dataset to keep `staged` as, and whether it is new."""
    row = connection.execute(sa.select(datasets).where(datasets.c.id == staged.dataset_id)).first()
    if row is not None:
        record = _record(row)
        if name in ("", record.name):
            return record, False
        raise AlreadyExists(
            f"the same content is stored as dataset {record.name!r}",
            reason="DATASET_CONTENT_EXISTS",
            metadata={"dataset": record.id, "name": record.name},
        )
    name = name or staged.dataset_id
    taken = sa.or_(datasets.c.name == name, datasets.c.id == name)
    if connection.execute(sa.select(datasets.c.id).where(taken)).first():
        raise AlreadyExists(
            f"dataset {name!r} exists with other content", reason="DATASET_NAME_TAKEN"
        )
    record = DatasetRecord(
        id=staged.dataset_id,
        name=name,
        description=description,
        counts=staged.counts,
        create_time=now(),
    )
    return record, True


def _insert(connection: Connection, record: DatasetRecord) -> None:
    connection.execute(
        datasets.insert().values(
            id=record.id,
            name=record.name,
            description=record.description,
            create_time=record.create_time,
            **asdict(record.counts),
        )
    )


def _get(connection: Connection, dataset: str) -> DatasetRecord:
    row = connection.execute(
        sa.select(datasets).where(sa.or_(datasets.c.id == dataset, datasets.c.name == dataset))
    ).first()
    if row is None:
        raise NotFound(f"no dataset {dataset!r}", reason="DATASET_NOT_FOUND")
    return _record(row)


def _delete(connection: Connection, dataset: str) -> DatasetRecord:
    record = _get(connection, dataset)
    for job in job_store.in_states(connection, ACTIVE):
        if record.id in job.spec.get("datasets", ()):
            raise FailedPrecondition(
                f"job {job.name!r} needs dataset {record.name!r}",
                reason="DATASET_IN_USE",
                metadata={"job": job.id},
            )
    connection.execute(sa.delete(datasets).where(datasets.c.id == record.id))
    return record


def _record(row: Row[Any]) -> DatasetRecord:
    return DatasetRecord(
        id=row.id,
        name=row.name,
        description=row.description,
        counts=DatasetCounts(**{f.name: getattr(row, f.name) for f in fields(DatasetCounts)}),
        create_time=job_store.aware(row.create_time),
    )


def _discard(making: Future[DatasetUpload]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().discard()
