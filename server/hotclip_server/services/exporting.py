"""Requests that move whole versions out of and into the server, checked and made into jobs."""

from __future__ import annotations

import hashlib

from hotclip_proto.v1 import artifact_pb2, model_pb2
from hotclip_server.artifacts.export_job import ExportSpec
from hotclip_server.artifacts.records import ArtifactFormat
from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.errors import FailedPrecondition, FieldViolation, InvalidArgument
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.models.naming import check_model
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.services.datasets import name_violations, request_id_violations

_FORMATS = {
    artifact_pb2.ARTIFACT_FORMAT_UNSPECIFIED: ArtifactFormat.OPEN_CLIP,
    artifact_pb2.ARTIFACT_FORMAT_OPEN_CLIP: ArtifactFormat.OPEN_CLIP,
    artifact_pb2.ARTIFACT_FORMAT_ONNX: ArtifactFormat.ONNX,
    artifact_pb2.ARTIFACT_FORMAT_DELTA: ArtifactFormat.DELTA,
}

Request = model_pb2.ExportRequest | model_pb2.ImportVersionRequest


def fingerprint(request: Request) -> str:
    """sha256 of what was asked, hex."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()


def export_job(request: model_pb2.ExportRequest, models: ModelRegistry) -> NewJob:
    """The job of an Export.

    Raises:
        InvalidArgument: names every bad field.
        NotFound: no such model or version.
        FailedPrecondition: no version is named and none is live; reason NO_LIVE_VERSION.
    """
    violations = [*name_violations(request.name), *request_id_violations(request.request_id)]
    format_ = _FORMATS.get(request.format)
    if format_ is None:
        violations.append(FieldViolation("format", f"{request.format} is not known"))
    if request.base_version and format_ is not ArtifactFormat.DELTA:
        violations.append(FieldViolation("base_version", "only a delta has one"))
    if violations or format_ is None:
        raise InvalidArgument.fields(violations)
    version = request.version or _live_version(models, request.model)
    record = models.get_version(version)
    if request.model and record.model != request.model:
        problem = f"version {version} is of model {record.model!r}, not {request.model!r}"
        raise InvalidArgument.field("version", problem)
    base = ""
    if format_ is ArtifactFormat.DELTA:
        base = request.base_version or record.manifest.parent
        if not base:
            problem = f"version {version} has no parent: name the version to be applied to"
            raise InvalidArgument.field("base_version", problem)
        if base == version:
            raise InvalidArgument.field("base_version", "is the version itself")
        models.get_version(base)
    spec = ExportSpec(format=format_, version=version, base_version=base, model=record.model)
    return NewJob(
        kind=JobKind.EXPORT,
        spec=spec.to_json(),
        name=request.name,
        model=record.model,
        request_id=request.request_id,
        fingerprint=fingerprint(request),
    )


async def import_job(request: model_pb2.ImportVersionRequest, artifacts: ArtifactStore) -> NewJob:
    """The job of an ImportVersion.

    Raises:
        InvalidArgument: names every bad field.
        NotFound: no such artifact.
    """
    violations = [*name_violations(request.name), *request_id_violations(request.request_id)]
    if violations:
        raise InvalidArgument.fields(violations)
    model = check_model(request.model)
    record = await artifacts.get(request.artifact)
    return NewJob(
        kind=JobKind.IMPORT,
        spec={"model": model, "artifact": record.id},
        name=request.name,
        model=model,
        request_id=request.request_id,
        fingerprint=fingerprint(request),
    )


def _live_version(models: ModelRegistry, model: str) -> str:
    state = models.model_state(model)
    if not state.live_version:
        raise FailedPrecondition(
            f"model {state.name!r} has no live version: name one", reason="NO_LIVE_VERSION"
        )
    return state.live_version
