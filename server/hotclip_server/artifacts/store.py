"""Keeps artifacts: one file each, named by its content, and a row in the database."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from hotclip_server.artifacts import records
from hotclip_server.artifacts.archive import unpack
from hotclip_server.artifacts.records import ArtifactFormat, ArtifactRecord, Origin, artifact_id
from hotclip_server.errors import DataLoss
from hotclip_server.storage.atomic import (
    new_folder,
    publish_file,
    raise_if_disk_full,
    remove_leftovers,
    require_free_space,
    sha256_file,
)
from hotclip_server.storage.database import Database, now

CHUNK_BYTES = 256 << 10
"""Of a download: the fastest over gRPC."""
PREFIX_BYTES = 32 << 20
"""Hashed at a time where a download does not begin at the start: others get their turn between."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a file; `sha256` is of the whole file and empty before the last chunk."""

    data: bytes
    offset: int
    sha256: str = ""


class ArtifactStore:
    """Coroutines are for the event loop; everything else blocks and is for any thread.

    Args:
        root: Folder of the files, made by `open`.
        executor: Reads and removes files for the event loop.
    """

    def __init__(self, root: Path, database: Database, executor: Executor) -> None:
        self._root = root
        self._database = database
        self._executor = executor
        # Between the file and the row nobody may delete or store the same content.
        self._changing = threading.Lock()

    def open(self) -> None:
        """Removes what a crash left: unfinished files, and files without a row."""
        self._root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._root)
        with self._database.transaction() as connection:
            known = set(records.known_ids(connection))
        for path in self._root.glob("art-*"):
            if path.stem not in known:
                path.unlink()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs blocking work on the executor."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(work, *args, **kwargs))

    async def get(self, artifact: str) -> ArtifactRecord:
        """By id. Raises NotFound."""
        return await self._database.run(lambda c: records.get(c, artifact))

    async def list(
        self, *, limit: int, before: tuple[datetime, str] | None = None, version: str = ""
    ) -> list[ArtifactRecord]:
        """Newest first, those older than `before` (creation time, id)."""
        return await self._database.run(
            lambda c: records.list_artifacts(c, limit=limit, before=before, version=version)
        )

    async def delete(self, artifact: str) -> None:
        """Removes an artifact; a download that runs is completed.

        Raises:
            NotFound: there is none.
            FailedPrecondition: a job needs it; reason ARTIFACT_IN_USE.
        """
        await self.run(self._delete, artifact)

    def find_export(self, format_: ArtifactFormat, origin: Origin) -> ArtifactRecord | None:
        """What was exported before and is still whole."""
        with self._database.transaction() as connection:
            record = records.find_export(connection, format_, origin)
        if record is None or not self._is_whole(record):
            return None
        return record

    def find_whole(self, sha256: str) -> ArtifactRecord | None:
        """The artifact of this content, if its file is there at its full length."""
        with self._database.transaction() as connection:
            record = records.find_sha256(connection, sha256)
        if record is None or not self.path(record).is_file():
            return None
        return record if self.path(record).stat().st_size == record.size_bytes else None

    @contextmanager
    def unpacked(self, artifact: str) -> Iterator[Path]:
        """A folder with the files of a verified artifact; removed at the end.

        Raises:
            NotFound: there is none.
            DataLoss: its file is damaged or gone.
            InvalidArgument: it is no archive of a model.
            ResourceExhausted: the disk is full; reason DISK_FULL.
        """
        record, path = self.load(artifact)
        with self.scratch() as folder:
            require_free_space(folder, record.size_bytes)
            try:
                unpack(path, folder)
            except OSError as error:
                raise_if_disk_full(error)
                raise
            yield folder

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the same disk, for files on their way to `add`; removed at the end."""
        folder = new_folder(self._root)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add(
        self, file: Path, sha256: str, format_: ArtifactFormat, origin: Origin
    ) -> ArtifactRecord:
        """Takes a file over, whole or not at all; the same content again is the same artifact.

        Args:
            file: On the same disk, e.g. in a folder of `scratch`.
            sha256: Of its content, hex.

        Raises:
            ResourceExhausted: the disk is full; reason DISK_FULL.
        """
        record = ArtifactRecord(
            id=artifact_id(sha256),
            format=format_,
            origin=origin,
            size_bytes=file.stat().st_size,
            sha256=sha256,
            create_time=now(),
        )
        with self._changing:
            publish_file(file, self.path(record))
            with self._database.transaction() as connection:
                return records.insert(connection, record)

    def load(self, artifact: str) -> tuple[ArtifactRecord, Path]:
        """An artifact whose file was verified.

        Raises:
            NotFound: there is none.
            DataLoss: its file is damaged or gone.
        """
        with self._database.transaction() as connection:
            record = records.get(connection, artifact)
        if not self._is_whole(record):
            raise damaged(record)
        return record, self.path(record)

    def path(self, record: ArtifactRecord) -> Path:
        """Where its file is."""
        return self._root / f"{record.id}.tar"

    def chunks(self, record: ArtifactRecord, offset: int) -> Iterator[Chunk]:
        """The file from an offset on, verified; without data while what lies before it is read.

        Raises:
            DataLoss: the file is damaged or gone; before the last chunk.
        """
        try:
            with self.path(record).open("rb") as file:
                digest, place = hashlib.sha256(), 0
                while place < offset:
                    data = file.read(min(PREFIX_BYTES, offset - place))
                    if not data:
                        raise damaged(record)
                    digest.update(data)
                    place += len(data)
                    yield Chunk(b"", place)
                held = file.read(CHUNK_BYTES)
                while data := file.read(CHUNK_BYTES):
                    digest.update(held)
                    yield Chunk(held, place)
                    place += len(held)
                    held = data
                digest.update(held)
        except OSError as error:
            raise damaged(record) from error
        if digest.hexdigest() != record.sha256:
            raise damaged(record)
        yield Chunk(held, place, record.sha256)

    def _is_whole(self, record: ArtifactRecord) -> bool:
        path = self.path(record)
        return path.is_file() and sha256_file(path) == record.sha256

    def _delete(self, artifact: str) -> None:
        with self._changing:
            with self._database.transaction() as connection:
                record = records.delete(connection, artifact)
            self.path(record).unlink(missing_ok=True)


def damaged(record: ArtifactRecord) -> DataLoss:
    """What is stored is not what was stored."""
    return DataLoss(
        f"the file of artifact {record.id} is damaged; export it again", reason="ARTIFACT_DAMAGED"
    )
