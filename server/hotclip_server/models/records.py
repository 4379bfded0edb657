"""Rows of versions and models. Every function runs in the caller's transaction, on the
database's thread.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from hotclip_server.encoding.protocol import EncoderSpec
from hotclip_server.errors import Aborted, FailedPrecondition
from hotclip_server.jobs import store as job_store
from hotclip_server.jobs.states import ACTIVE
from hotclip_server.models.lineage import JOB_SOURCE, Lineage
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.models.state import ModelRow, ModelState, VersionRecord
from hotclip_server.storage import schema

LOAD_VERSION = "LoadVersion"
ACTIVATE_VERSION = "ActivateVersion"
ROLLBACK = "Rollback"


def read_versions(connection: Connection) -> list[VersionRecord]:
    """All versions of all models."""
    return [_record(row) for row in connection.execute(sa.select(schema.versions))]


def read_models(connection: Connection) -> list[ModelRow]:
    """All models."""
    return [
        ModelRow(
            name=row.name,
            live=row.live_version or "",
            previous=row.previous_version or "",
            etag=row.etag,
            revision=row.revision,
            change_time=_aware(row.change_time) if row.change_time else None,
        )
        for row in connection.execute(sa.select(schema.models))
    ]


def insert_version(connection: Connection, record: VersionRecord) -> None:
    """Adds a version."""
    manifest, spec = record.manifest, record.manifest.spec
    connection.execute(
        sa.insert(schema.versions).values(
            id=manifest.id,
            model=record.model,
            parent=manifest.parent,
            source=manifest.source,
            architecture=spec.architecture,
            space_id=spec.space_id,
            text_encoder_id=spec.text_encoder_id,
            vision_encoder_id=spec.vision_encoder_id,
            dim=spec.dim,
            image_size=spec.image_size,
            context_length=spec.context_length,
            size_bytes=manifest.size_bytes,
            sha256=manifest.sha256,
            metrics=dict(record.metrics),
            lineage=record.lineage.to_json() if record.lineage else None,
            create_time=record.create_time,
        )
    )


def update_metrics(connection: Connection, version_id: str, metrics: dict[str, float]) -> None:
    """Replaces the metrics of a version."""
    connection.execute(
        sa.update(schema.versions).where(schema.versions.c.id == version_id).values(metrics=metrics)
    )


def delete_version(connection: Connection, version_id: str) -> None:
    """Removes a version.

    Raises:
        FailedPrecondition: a model, a collection or a job names it; reason VERSION_IN_USE.
    """
    for job in job_store.in_states(connection, ACTIVE):
        if version_id in (job.spec.get("base_version"), job.spec.get("version")):
            raise FailedPrecondition(
                f"job {job.name!r} needs version {version_id}",
                reason="VERSION_IN_USE",
                metadata={"job": job.id},
            )
    if users := _users(connection, version_id):
        raise FailedPrecondition(
            f"version {version_id} is in use: {', '.join(users)}", reason="VERSION_IN_USE"
        )
    connection.execute(sa.delete(schema.versions).where(schema.versions.c.id == version_id))


def _users(connection: Connection, version_id: str) -> list[str]:
    """Models and collections that a version is live in, bound to, or kept for, for people."""
    found = []
    of_collections = schema.collections
    for who, table, columns in (
        ("model {!r} needs it", schema.models, ("live_version", "previous_version")),
        ("collection {!r} needs it", of_collections, ("version", "previous_version")),
        (
            "the shadow of collection {!r} is of it (DropShadow gives that up)",
            of_collections,
            ("shadow_version",),
        ),
    ):
        names = sa.select(table.c.name).where(
            sa.or_(*(table.c[column] == version_id for column in columns))
        )
        rows = connection.execute(names.order_by(table.c.name)).scalars()
        found += [who.format(name) for name in rows]
    return found


def insert_model(connection: Connection, row: ModelRow) -> None:
    """Adds a model."""
    connection.execute(
        sa.insert(schema.models).values(
            name=row.name,
            live_version=row.live or None,
            previous_version=row.previous or None,
            etag=row.etag,
            revision=row.revision,
        )
    )


def update_model(connection: Connection, row: ModelRow, *, etag: str) -> None:
    """Replaces a model's row if it still has `etag`, and keeps what is live from now on in
    `model_changes` if that is another revision.

    Raises:
        Aborted: it has another; reason ETAG_MISMATCH.
    """
    models = schema.models
    result = connection.execute(
        sa.update(models)
        .where(models.c.name == row.name, models.c.etag == etag)
        .values(
            live_version=row.live or None,
            previous_version=row.previous or None,
            etag=row.etag,
            revision=row.revision,
            change_time=row.change_time,
        )
    )
    if result.rowcount != 1:
        raise Aborted(f"model {row.name} was changed by somebody else")
    if row.etag == etag:
        return
    space = sa.select(schema.versions.c.space_id).where(schema.versions.c.id == row.live)
    connection.execute(
        sa.insert(schema.model_changes).values(
            model=row.name,
            revision=row.revision,
            live_version=row.live,
            previous_version=row.previous,
            etag=row.etag,
            space_id=connection.execute(space).scalar() or "",
            time=row.change_time,
        )
    )


def read_changes(connection: Connection, model: str, after: int, before: int) -> list[ModelState]:
    """What a model was between two revisions, both excluded, in order."""
    changes = schema.model_changes
    rows = connection.execute(
        sa.select(changes)
        .where(changes.c.model == model, changes.c.revision > after, changes.c.revision < before)
        .order_by(changes.c.revision)
    )
    return [
        ModelState(
            name=row.model,
            live_version=row.live_version,
            previous_version=row.previous_version,
            staged_versions=(),
            etag=row.etag,
            space_id=row.space_id,
            revision=row.revision,
            change_time=_aware(row.time),
        )
        for row in rows
    ]


def lineage_of(connection: Connection, source: str) -> Lineage | None:
    """What the job was told that made a version of this source; None if no job did, or it is
    gone."""
    if not source.startswith(JOB_SOURCE):
        return None
    job = source.removeprefix(JOB_SOURCE)
    spec = connection.execute(sa.select(schema.jobs.c.spec).where(schema.jobs.c.id == job)).scalar()
    return None if spec is None else Lineage.of_job(job, spec)


def _record(row: Row[tuple[object, ...]]) -> VersionRecord:
    return VersionRecord(
        manifest=VersionManifest(
            id=row.id,
            spec=EncoderSpec(
                architecture=row.architecture,
                dim=row.dim,
                image_size=row.image_size,
                context_length=row.context_length,
                text_encoder_id=row.text_encoder_id,
                vision_encoder_id=row.vision_encoder_id,
                space_id=row.space_id,
            ),
            parent=row.parent,
            source=row.source,
            size_bytes=row.size_bytes,
            sha256=row.sha256,
        ),
        model=row.model,
        create_time=_aware(row.create_time),
        metrics=row.metrics,
        lineage=Lineage.from_json(row.lineage) if row.lineage else None,
    )


def _aware(time: datetime) -> datetime:
    """SQLite forgets the time zone; everything is stored in UTC."""
    return time.replace(tzinfo=UTC)
