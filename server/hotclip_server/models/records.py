"""Rows of versions, models and idempotent requests. Every function runs in the caller's
transaction, on the database's thread.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from hotclip_server.encoding.protocol import EncoderSpec
from hotclip_server.errors import Aborted, FailedPrecondition, InvalidArgument
from hotclip_server.jobs import store as job_store
from hotclip_server.jobs.states import ACTIVE
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.models.state import ModelRow, VersionRecord
from hotclip_server.storage import schema

LOAD_VERSION = "LoadVersion"


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
    try:
        connection.execute(sa.delete(schema.versions).where(schema.versions.c.id == version_id))
    except sa.exc.IntegrityError as error:
        raise FailedPrecondition(
            f"version {version_id} is bound to a model or a collection", reason="VERSION_IN_USE"
        ) from error


def insert_model(connection: Connection, row: ModelRow) -> None:
    """Adds a model."""
    connection.execute(
        sa.insert(schema.models).values(
            name=row.name,
            live_version=row.live or None,
            previous_version=row.previous or None,
            etag=row.etag,
        )
    )


def update_model(connection: Connection, row: ModelRow, *, etag: str) -> None:
    """Replaces a model's row if it still has `etag`.

    Raises:
        Aborted: it has another; reason ETAG_MISMATCH.
    """
    models = schema.models
    result = connection.execute(
        sa.update(models)
        .where(models.c.name == row.name, models.c.etag == etag)
        .values(live_version=row.live or None, previous_version=row.previous or None, etag=row.etag)
    )
    if result.rowcount != 1:
        raise Aborted(f"model {row.name} was changed by somebody else")


def find_request(
    connection: Connection, method: str, request_id: str, fingerprint: str
) -> str | None:
    """The resource that an earlier request with this id made, if any.

    Raises:
        InvalidArgument: the id was used for another request; reason REQUEST_ID_REUSED.
    """
    requests = schema.requests
    row = connection.execute(
        sa.select(requests.c.fingerprint, requests.c.resource).where(
            requests.c.method == method, requests.c.request_id == request_id
        )
    ).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise InvalidArgument.field(
            "request_id", "was used for another request", reason="REQUEST_ID_REUSED"
        )
    return str(row.resource)


def insert_request(
    connection: Connection, method: str, request_id: str, fingerprint: str, resource: str
) -> None:
    """Notes what a request made; an older note of the same id is replaced."""
    requests = schema.requests
    connection.execute(
        sa.delete(requests).where(requests.c.method == method, requests.c.request_id == request_id)
    )
    connection.execute(
        sa.insert(requests).values(
            method=method,
            request_id=request_id,
            fingerprint=fingerprint,
            resource=resource,
            create_time=datetime.now(UTC),
        )
    )


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
        # SQLite forgets the time zone; everything is stored in UTC.
        create_time=row.create_time.replace(tzinfo=UTC),
        metrics=row.metrics,
    )
