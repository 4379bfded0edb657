"""Rows of artifacts. Every function runs in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from hotclip_server.errors import FailedPrecondition, NotFound
from hotclip_server.jobs import store as job_store
from hotclip_server.jobs.states import ACTIVE
from hotclip_server.storage.schema import artifacts


class ArtifactFormat(StrEnum):
    """What is in an archive; the values are stored."""

    OPEN_CLIP = "OPEN_CLIP"
    ONNX = "ONNX"
    DELTA = "DELTA"


DELTA_FILES = frozenset({"hotclip_delta.json", "hotclip_delta.safetensors"})
ONNX_FILES = frozenset({"clip-text.onnx", "clip-vision.onnx", "hotclip_local.json"})


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an artifact was made of; empty strings if it was uploaded."""

    version: str = ""
    base_version: str = ""
    """Of a delta: the version that it is applied to."""
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class ArtifactRecord:
    """One row. `sha256` is of the file, hex; `create_time` is aware, in UTC."""

    id: str
    format: ArtifactFormat
    origin: Origin
    size_bytes: int
    sha256: str
    create_time: datetime

    @property
    def file_name(self) -> str:
        """For a caller's disk."""
        return f"{archive_folder(self.format, self.origin) or self.id}.tar"


def archive_folder(format_: ArtifactFormat, origin: Origin) -> str:
    """Name of the folder in the archive of an export; empty for an upload."""
    if not origin.version:
        return ""
    kind = {ArtifactFormat.ONNX: "-onnx", ArtifactFormat.DELTA: f"-on-{origin.base_version}"}
    return f"hotclip-{origin.version}{kind.get(format_, '')}"


def artifact_id(sha256: str) -> str:
    """The content address of a file."""
    return f"art-{sha256[:32]}"


def insert(connection: Connection, record: ArtifactRecord) -> ArtifactRecord:
    """Adds a row; gives the one that is there if the same content was stored before."""
    known = _find(connection, artifacts.c.id == record.id)
    if known is not None:
        return known
    values = {**asdict(record), **asdict(record.origin), "format": record.format.value}
    del values["origin"]
    connection.execute(artifacts.insert().values(values))
    return record


def get(connection: Connection, artifact: str) -> ArtifactRecord:
    """By id. Raises NotFound."""
    found = _find(connection, artifacts.c.id == artifact)
    if found is None:
        raise NotFound(f"no artifact {artifact!r}", reason="ARTIFACT_NOT_FOUND")
    return found


def find_sha256(connection: Connection, sha256: str) -> ArtifactRecord | None:
    """The artifact of this content, if there is one."""
    return _find(connection, artifacts.c.sha256 == sha256)


def find_export(
    connection: Connection, format_: ArtifactFormat, origin: Origin
) -> ArtifactRecord | None:
    """What was exported of a version before, if anything."""
    return _find(
        connection,
        sa.and_(
            artifacts.c.format == format_.value,
            artifacts.c.version == origin.version,
            artifacts.c.base_version == origin.base_version,
        ),
    )


def list_artifacts(
    connection: Connection,
    *,
    limit: int,
    before: tuple[datetime, str] | None = None,
    version: str = "",
) -> list[ArtifactRecord]:
    """Newest first, those older than `before` (creation time, id)."""
    columns = (artifacts.c.create_time, artifacts.c.id)
    query = sa.select(artifacts).order_by(*(c.desc() for c in columns)).limit(limit)
    if before is not None:
        query = query.where(sa.tuple_(*columns) < sa.tuple_(*before))
    if version:
        query = query.where(artifacts.c.version == version)
    return [_record(row) for row in connection.execute(query)]


def known_ids(connection: Connection) -> Sequence[str]:
    """Of every row."""
    return connection.execute(sa.select(artifacts.c.id)).scalars().all()


def delete(connection: Connection, artifact: str) -> ArtifactRecord:
    """Removes a row.

    Raises:
        NotFound: there is none.
        FailedPrecondition: a job needs it; reason ARTIFACT_IN_USE.
    """
    record = get(connection, artifact)
    for job in job_store.in_states(connection, ACTIVE):
        if job.spec.get("artifact") == record.id:
            raise FailedPrecondition(
                f"job {job.name!r} needs artifact {record.id}",
                reason="ARTIFACT_IN_USE",
                metadata={"job": job.id},
            )
    connection.execute(sa.delete(artifacts).where(artifacts.c.id == record.id))
    return record


def _find(connection: Connection, condition: sa.ColumnElement[bool]) -> ArtifactRecord | None:
    query = sa.select(artifacts).where(condition).order_by(artifacts.c.create_time.desc())
    row = connection.execute(query.limit(1)).first()
    return None if row is None else _record(row)


def _record(row: Row[Any]) -> ArtifactRecord:
    return ArtifactRecord(
        id=row.id,
        format=ArtifactFormat(row.format),
        origin=Origin(version=row.version, base_version=row.base_version, model=row.model),
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        create_time=job_store.aware(row.create_time),
    )
