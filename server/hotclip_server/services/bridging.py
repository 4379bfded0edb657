"""Requests about bridges, checked and made into jobs."""

from __future__ import annotations

import hashlib

from hotclip_proto.v1 import drift_pb2
from hotclip_server.drift.bridge_job import DEFAULT_SAMPLE, SAMPLES, BridgeSpec
from hotclip_server.drift.spec import DEFAULT_K, MOST_K
from hotclip_server.errors import FailedPrecondition, FieldViolation, InvalidArgument
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.services.datasets import name_violations, request_id_violations
from hotclip_server.services.texts import text_violations


def fingerprint(request: drift_pb2.FitBridgeRequest) -> str:
    """sha256 of what was asked, hex."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()


def bridge_job(
    request: drift_pb2.FitBridgeRequest,
    models: ModelRegistry,
    catalogue: Catalogue,
    max_text_bytes: int,
) -> NewJob:
    """The job of a FitBridge.

    Raises:
        InvalidArgument: names every bad field.
        NotFound: no such collection or version.
        FailedPrecondition: the collection is bound to the version; reason ALREADY_BOUND.
    """
    violations = [*name_violations(request.name), *request_id_violations(request.request_id)]
    violations += text_violations(request.texts, max_text_bytes)
    if not request.version:
        violations.append(FieldViolation("version", "is required"))
    if request.HasField("sample") and not SAMPLES[0] <= request.sample <= SAMPLES[1]:
        violations.append(FieldViolation("sample", f"must be {SAMPLES[0]} to {SAMPLES[1]}"))
    if request.HasField("k") and not 1 <= request.k <= MOST_K:
        violations.append(FieldViolation("k", f"must be 1 to {MOST_K}"))
    if violations:
        raise InvalidArgument.fields(violations)
    record, version = catalogue.get(request.collection), models.get_version(request.version)
    if version.model != record.model:
        problem = f"{version.id} is of model {version.model!r}, not {record.model!r}"
        raise InvalidArgument.field("version", problem)
    if record.version == version.id:
        raise FailedPrecondition(
            f"collection {record.name!r} is bound to version {version.id}", reason="ALREADY_BOUND"
        )
    spec = BridgeSpec(
        collection=record.name,
        version=version.id,
        texts=tuple(request.texts),
        sample=request.sample if request.HasField("sample") else DEFAULT_SAMPLE,
        k=request.k if request.HasField("k") else DEFAULT_K,
        seed=request.seed,
    )
    return NewJob(
        kind=JobKind.BRIDGE,
        spec=spec.to_json(),
        name=request.name,
        model=record.model,
        request_id=request.request_id,
        fingerprint=fingerprint(request),
    )


def with_current(stored: drift_pb2.Bridge, *, current: bool = True) -> drift_pb2.Bridge:
    """As the wire has it: whether it still serves is not stored."""
    facts = drift_pb2.Bridge()
    facts.CopyFrom(stored)
    facts.current = current
    return facts
