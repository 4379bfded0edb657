"""Keeps datasets: one folder each, named by content, and a row in the database."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import asdict, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from hotclip_server.datasets.records import (
    DatasetCounts,
    DatasetLimits,
    DatasetRecord,
    Sent,
    UploadTerms,
)
from hotclip_server.datasets.report import DatasetReport
from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.datasets.upload import DatasetUpload, Staged
from hotclip_server.datasets.uploads import Uploads
from hotclip_server.errors import AlreadyExists, FailedPrecondition, HotclipError, NotFound
from hotclip_server.jobs import store as job_store
from hotclip_server.jobs.states import ACTIVE
from hotclip_server.storage.atomic import publish_folder, remove_leftovers
from hotclip_server.storage.database import Database, now
from hotclip_server.storage.schema import datasets

EXPIRY_CHECK_S = 600.0

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
        self.limits = limits
        self._uploads = Uploads(root / "uploads", limits)
        self._expiring: asyncio.Task[None] | None = None
        # Between the folder and the row nobody may delete or store the same content.
        self._changing = asyncio.Lock()

    def open(self) -> None:
        """Removes what a crash left: uploads that are too old, and folders without a row."""
        self._root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._root)
        self._uploads.open()
        with self._database.transaction() as connection:
            known = set(connection.execute(sa.select(datasets.c.id)).scalars())
        for folder in self._root.glob("ds-*"):
            if folder.name not in known:
                shutil.rmtree(folder)

    def start(self) -> None:
        """Removes uploads that get too old from now on."""
        self._expiring = asyncio.create_task(self._expire())

    async def stop(self) -> None:
        """Ends what `start` started."""
        if self._expiring is not None:
            self._expiring.cancel()
            await asyncio.wait([self._expiring])

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_CHECK_S)
            await self.run(self._uploads.expire)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs blocking work on the executor."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: work(*args, **kwargs))

    async def begin(self, terms: UploadTerms) -> DatasetUpload:
        """Starts an upload; end it with `commit` or with its `discard` or `suspend`.

        Raises:
            ResourceExhausted: too many are unfinished, or the disk is full.
        """
        beginning = self._executor.submit(self._uploads.begin, terms)
        try:
            return await asyncio.wrap_future(beginning)
        except asyncio.CancelledError:
            # A thread that has begun makes it all the same.
            beginning.add_done_callback(_discard)
            raise

    async def resume(self, upload_id: str) -> DatasetUpload | DatasetRecord:
        """An unfinished upload, or what it has become.

        Raises:
            NotFound: there is none, or nobody went on with it for too long.
            HotclipError: why it was refused, if it was.
        """
        resuming = self._executor.submit(self._uploads.resume, upload_id)
        try:
            found = await asyncio.wrap_future(resuming)
        except asyncio.CancelledError:
            resuming.add_done_callback(_suspend)
            raise
        return await self.get(found) if isinstance(found, str) else found

    async def refuse(self, upload: DatasetUpload, why: HotclipError) -> None:
        """Ends an upload and leaves nothing of it but why."""
        await self.run(self._uploads.refuse, upload, why)

    def leave(self, upload: DatasetUpload) -> None:
        """Keeps an upload, unless it has ended, for a call that goes on with it; at once."""
        self._executor.submit(upload.suspend)

    async def commit(self, upload: DatasetUpload, sent: Sent) -> DatasetRecord:
        """Checks and stores an upload; the same content under the same name gives the same.

        Raises:
            InvalidArgument: more or less came than was sent.
            DatasetInvalid: too many rows are bad.
            AlreadyExists: the name belongs to other content, or the content to another name.
            ResourceExhausted: the disk is full.
        """
        staged = await self.run(upload.finish, sent)
        try:
            async with self._changing:
                record, is_new = await self._database.run(
                    lambda c: _find_same(c, staged, upload.terms)
                )
                if is_new:
                    final = self._root / staged.dataset_id
                    await self.run(publish_folder, staged.folder, final)
                    await self._database.run(lambda c: _insert(c, record))
            await self.run(self._uploads.set_stored, upload, record.id)
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
            short = (c for c in datasets.c if c is not datasets.c.report)
            query = sa.select(*short).order_by(*(c.desc() for c in columns)).limit(limit)
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
    connection: Connection, staged: Staged, terms: UploadTerms
) -> tuple[DatasetRecord, bool]:
    """The dataset to keep `staged` as, and whether it is new."""
    row = connection.execute(sa.select(datasets).where(datasets.c.id == staged.dataset_id)).first()
    if row is not None:
        record = _record(row)
        if terms.name in ("", record.name):
            return replace(record, report=staged.report), False
        raise AlreadyExists(
            f"the same content is stored as dataset {record.name!r}",
            reason="DATASET_CONTENT_EXISTS",
            metadata={"dataset": record.id, "name": record.name},
        )
    name = terms.name or staged.dataset_id
    taken = sa.or_(datasets.c.name == name, datasets.c.id == name)
    if connection.execute(sa.select(datasets.c.id).where(taken)).first():
        raise AlreadyExists(
            f"dataset {name!r} exists with other content", reason="DATASET_NAME_TAKEN"
        )
    record = DatasetRecord(
        id=staged.dataset_id,
        name=name,
        description=terms.description,
        counts=staged.counts,
        create_time=now(),
        report=staged.report,
    )
    return record, True


def _insert(connection: Connection, record: DatasetRecord) -> None:
    connection.execute(
        datasets.insert().values(
            id=record.id,
            name=record.name,
            description=record.description,
            create_time=record.create_time,
            report=record.report.to_json() if record.report else None,
            **asdict(record.counts),
        )
    )


def _get(connection: Connection, dataset: str) -> DatasetRecord:
    # Another one may have been given a name that is the id of this.
    query = sa.select(datasets).where(sa.or_(datasets.c.id == dataset, datasets.c.name == dataset))
    row = connection.execute(query.order_by(datasets.c.id != dataset)).first()
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
    report = row._mapping.get("report")
    return DatasetRecord(
        id=row.id,
        name=row.name,
        description=row.description,
        counts=DatasetCounts(**{f.name: getattr(row, f.name) for f in fields(DatasetCounts)}),
        create_time=job_store.aware(row.create_time),
        report=None if report is None else DatasetReport.from_json(report),
    )


def _discard(making: Future[DatasetUpload]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().discard()


def _suspend(resuming: Future[DatasetUpload | str]) -> None:
    if not resuming.cancelled() and resuming.exception() is None:
        found = resuming.result()
        if not isinstance(found, str):
            found.suspend()
