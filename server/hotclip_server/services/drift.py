"""DriftService: checks requests whole, then queues jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from hotclip_proto.v1 import drift_pb2, drift_pb2_grpc, job_pb2
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.drift import records
from hotclip_server.drift.bridges import Bridges
from hotclip_server.drift.compare import TOWER_NUMBERS
from hotclip_server.drift.figures import Figures
from hotclip_server.drift.shadow import Shadow
from hotclip_server.drift.shift import SHARES, shift_of
from hotclip_server.drift.spec import (
    DEFAULT_K,
    DEFAULT_SAMPLE,
    MOST_K,
    SAMPLES,
    DriftSpec,
)
from hotclip_server.drift.traffic import DEFAULT_LIFETIME_S, ShadowTraffic
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import FailedPrecondition, FieldViolation, InvalidArgument
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.store import timestamp
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.services.bridging import bridge_job, fingerprint, with_current
from hotclip_server.services.datasets import name_violations, request_id_violations
from hotclip_server.services.jobs import job_to_proto
from hotclip_server.services.texts import text_violations
from hotclip_server.storage.database import Database

Context = grpc.aio.ServicerContext[Any, Any]


class DriftService(drift_pb2_grpc.DriftServiceServicer):
    """See drift.proto.

    Args:
        max_text_bytes: Of a text, in UTF-8.
        traffic: Copies requests.
    """

    def __init__(
        self,
        database: Database,
        jobs: JobRunner,
        models: ModelRegistry,
        catalogue: Catalogue,
        datasets: DatasetStore,
        max_text_bytes: int,
        traffic: ShadowTraffic,
        bridges: Bridges,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._models = models
        self._catalogue = catalogue
        self._datasets = datasets
        self._max_text_bytes = max_text_bytes
        self._traffic = traffic
        self._bridges = bridges

    async def CompareVersions(  # noqa: N802 - named by the proto
        self, request: drift_pb2.CompareVersionsRequest, context: Context
    ) -> job_pb2.Job:
        """Checks the whole request, then queues it."""
        mark = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        known = await self._jobs.requested(JobKind.DRIFT, request.request_id, mark)
        if known is not None:
            return job_to_proto(known)
        spec = await self._spec(request)
        new = NewJob(
            kind=JobKind.DRIFT,
            spec=spec.to_json(),
            name=request.name,
            description=request.description,
            model=spec.model,
            request_id=request.request_id,
            fingerprint=mark,
        )
        return job_to_proto(await self._jobs.submit(new))

    async def GetDriftReport(  # noqa: N802 - named by the proto
        self, request: drift_pb2.GetDriftReportRequest, context: Context
    ) -> drift_pb2.DriftReport:
        """What a job has found."""
        job = await self._jobs.get(request.job)
        report = await self._database.run(lambda c: records.find_report(c, job.id))
        if report is None:
            raise FailedPrecondition(
                f"job {job.name!r} ({job.kind}, {job.state}) has no drift report",
                reason="NO_DRIFT_REPORT",
            )
        return report

    async def SetShadowTraffic(  # noqa: N802 - named by the proto
        self, request: drift_pb2.SetShadowTrafficRequest, context: Context
    ) -> drift_pb2.ShadowTraffic:
        """Begins to copy requests."""
        if not request.version:
            raise InvalidArgument.field("version", "is required")
        lifetime_s = request.lifetime_s if request.HasField("lifetime_s") else DEFAULT_LIFETIME_S
        shadow = await self._traffic.set(
            request.model, request.version, share=request.share, lifetime_s=lifetime_s
        )
        return shadow_to_proto(shadow)

    async def GetShadowTraffic(  # noqa: N802 - named by the proto
        self, request: drift_pb2.GetShadowTrafficRequest, context: Context
    ) -> drift_pb2.ShadowTraffic:
        """Figures so far."""
        return shadow_to_proto(self._traffic.get(request.model))

    async def ClearShadowTraffic(  # noqa: N802 - named by the proto
        self, request: drift_pb2.ClearShadowTrafficRequest, context: Context
    ) -> drift_pb2.ShadowTraffic:
        """Ends it."""
        return shadow_to_proto(self._traffic.clear(request.model))

    async def FitBridge(  # noqa: N802 - named by the proto
        self, request: drift_pb2.FitBridgeRequest, context: Context
    ) -> job_pb2.Job:
        """Queues a fit."""
        known = await self._jobs.requested(JobKind.BRIDGE, request.request_id, fingerprint(request))
        if known is not None:
            return job_to_proto(known)
        new = bridge_job(request, self._models, self._catalogue, self._max_text_bytes)
        return job_to_proto(await self._jobs.submit(new))

    async def GetBridge(  # noqa: N802 - named by the proto
        self, request: drift_pb2.GetBridgeRequest, context: Context
    ) -> drift_pb2.Bridge:
        """Of a collection."""
        bridge, current = await self._bridges.get(request.collection)
        return with_current(bridge.facts, current=current)

    async def DeleteBridge(  # noqa: N802 - named by the proto
        self, request: drift_pb2.DeleteBridgeRequest, context: Context
    ) -> drift_pb2.DeleteBridgeResponse:
        """Of a collection."""
        await self._bridges.delete(request.collection)
        return drift_pb2.DeleteBridgeResponse()

    async def _spec(self, request: drift_pb2.CompareVersionsRequest) -> DriftSpec:
        violations = list(_violations(request, self._max_text_bytes))
        if violations:
            raise InvalidArgument.fields(violations)
        state = self._models.model_state(request.model)
        base = request.base_version or state.live_version
        if not base:
            raise FailedPrecondition(
                f"model {state.name!r} has no live version: name one", reason="NO_LIVE_VERSION"
            )
        for field, version in (("version", request.version), ("base_version", base)):
            record = self._models.get_version(version)
            if record.model != state.name:
                problem = f"version {version} is of model {record.model!r}, not {state.name!r}"
                raise InvalidArgument.field(field, problem)
        if base == request.version:
            raise InvalidArgument.field("version", "is the one that it is compared with")
        for at, name in enumerate(request.collections):
            of_model = self._catalogue.get(name).model
            if of_model != state.name:
                problem = f"collection {name!r} is of model {of_model!r}, not {state.name!r}"
                raise InvalidArgument.field(f"collections[{at}]", problem)
        dataset = (await self._datasets.get(request.dataset)).id if request.dataset else ""
        found = any(record.model == state.name for record in self._catalogue.list())
        if not (found or dataset or request.texts):
            raise FailedPrecondition(
                f"model {state.name!r} has no collections: name a dataset or give texts",
                reason="NOTHING_TO_COMPARE",
            )
        return DriftSpec(
            model=state.name,
            version=request.version,
            base_version=base,
            collections=tuple(request.collections),
            dataset=dataset,
            texts=tuple(request.texts),
            sample=request.sample if request.HasField("sample") else DEFAULT_SAMPLE,
            k=request.k if request.HasField("k") else DEFAULT_K,
            seed=request.seed,
        )


def _violations(
    request: drift_pb2.CompareVersionsRequest, max_text_bytes: int
) -> Iterator[FieldViolation]:
    yield from name_violations(request.name, request.description)
    yield from request_id_violations(request.request_id)
    if not request.version:
        yield FieldViolation("version", "is required")
    if request.HasField("sample") and not SAMPLES[0] <= request.sample <= SAMPLES[1]:
        yield FieldViolation("sample", f"must be {SAMPLES[0]} to {SAMPLES[1]}")
    if request.HasField("k") and not 1 <= request.k <= MOST_K:
        yield FieldViolation("k", f"must be 1 to {MOST_K}")
    yield from text_violations(request.texts, max_text_bytes)


def shadow_to_proto(shadow: Shadow) -> drift_pb2.ShadowTraffic:
    """As the wire has it."""
    return drift_pb2.ShadowTraffic(
        model=shadow.model,
        version=shadow.version,
        base_version=shadow.base_version,
        share=shadow.share,
        create_time=timestamp(shadow.create_time),
        expire_time=timestamp(shadow.expire_time),
        end_reason=shadow.end_reason,
        requests=shadow.requests,
        copied=shadow.copied,
        compared=shadow.compared,
        dropped=shadow.dropped,
        failed=shadow.failed,
        towers=[_tower(tower, figures) for tower, figures in shadow.cosines.items()],
        live=_latency(shadow.live_us),
        shadow=_latency(shadow.shadow_us),
    )


def _tower(tower: Tower, figures: Figures) -> drift_pb2.TowerDrift:
    drift = drift_pb2.TowerDrift(tower=TOWER_NUMBERS[tower], items=figures.count)
    shift = shift_of(figures.values)
    if shift is not None:
        drift.cosine_mean = figures.mean
        for share, value in zip(SHARES, shift.quantiles, strict=True):
            drift.cosine_quantiles.add(share=share, value=value)
    return drift


def _latency(figures: Figures) -> drift_pb2.Latency:
    latency = drift_pb2.Latency(count=figures.count, mean_us=figures.mean)
    if figures.count:
        values = np.quantile(figures.values, (0.5, 0.95, 0.99))
        latency.p50_us, latency.p95_us, latency.p99_us = map(float, values)
    return latency
