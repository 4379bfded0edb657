"""ModelService: the wire side of models and versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from hotclip_proto.v1 import job_pb2, model_pb2, model_pb2_grpc
from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.errors import FailedPrecondition, InvalidArgument
from hotclip_server.jobs.records import JobKind
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.models.backbones import BACKBONES
from hotclip_server.models.protocol import ArchitectureInfo, VersionManifest
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.models.state import ModelState, VersionRecord, VersionState
from hotclip_server.services.exporting import export_job, fingerprint, import_job
from hotclip_server.services.gates import gates_from_proto
from hotclip_server.services.jobs import job_to_proto
from hotclip_server.services.paging import Key, PageRequest

MOST_AVERAGED = 64

Context = grpc.aio.ServicerContext[Any, Any]

_STATES = {
    VersionState.STORED: model_pb2.VERSION_STATE_STORED,
    VersionState.STAGED: model_pb2.VERSION_STATE_STAGED,
    VersionState.LIVE: model_pb2.VERSION_STATE_LIVE,
    VersionState.PREVIOUS: model_pb2.VERSION_STATE_PREVIOUS,
    VersionState.BOUND: model_pb2.VERSION_STATE_BOUND,
}


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """See model.proto.

    Args:
        jobs: Runs exports and imports.
        merge: Stores the version between two others; blocks.
        average: Stores the mean of versions; blocks.
        describe_architectures: Reads open_clip's configs; blocks.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        describe_architectures: Callable[[], Sequence[ArchitectureInfo]],
        merge: Callable[[str, str, float], VersionManifest],
        average: Callable[[Sequence[str]], VersionManifest],
        jobs: JobRunner,
        artifacts: ArtifactStore,
    ) -> None:
        self._artifacts = artifacts
        self._registry = registry
        self._jobs = jobs
        self._merge = merge
        self._average = average
        self._describe_architectures = describe_architectures

    async def ListModels(  # noqa: N802 - named by the proto
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        """By name."""
        page = PageRequest.parse(request.page_size, request.page_token, listing="models")
        states, token = page.select(self._registry.list_models(), lambda state: (state.name,))
        return model_pb2.ListModelsResponse(
            models=[model_to_proto(state) for state in states], next_page_token=token
        )

    async def GetModel(  # noqa: N802 - named by the proto
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.Model:
        """One model."""
        return model_to_proto(self._registry.model_state(request.model))

    async def LoadVersion(  # noqa: N802 - named by the proto
        self, request: model_pb2.LoadVersionRequest, context: Context
    ) -> model_pb2.Version:
        """Imports and stages."""
        record = await self._registry.load_version(
            request.model, request.source, request.request_id
        )
        return self._version(record)

    async def ListVersions(  # noqa: N802 - named by the proto
        self, request: model_pb2.ListVersionsRequest, context: Context
    ) -> model_pb2.ListVersionsResponse:
        """Newest first."""
        page = PageRequest.parse(
            request.page_size,
            request.page_token,
            listing=f"versions/{request.model}",
            kinds=(float, str),
        )
        records, token = page.select(self._registry.list_versions(request.model), _newest_first)
        return model_pb2.ListVersionsResponse(
            versions=[self._version(record) for record in records], next_page_token=token
        )

    async def GetVersion(  # noqa: N802 - named by the proto
        self, request: model_pb2.GetVersionRequest, context: Context
    ) -> model_pb2.Version:
        """One version."""
        return self._version(self._registry.get_version(_named(request.version)))

    async def ActivateVersion(  # noqa: N802 - named by the proto
        self, request: model_pb2.ActivateVersionRequest, context: Context
    ) -> model_pb2.Model:
        """Makes a version live."""
        state = await self._registry.activate(
            request.model,
            _named(request.version),
            etag=request.etag,
            validate_only=request.validate_only,
            collections=tuple(request.collections),
            gates=gates_from_proto(request.gates),
            request_id=request.request_id,
        )
        return model_to_proto(state)

    async def Rollback(  # noqa: N802 - named by the proto
        self, request: model_pb2.RollbackRequest, context: Context
    ) -> model_pb2.Model:
        """Makes the previous version live."""
        state = await self._registry.rollback(
            request.model, etag=request.etag, request_id=request.request_id
        )
        return model_to_proto(state)

    async def UnloadVersion(  # noqa: N802 - named by the proto
        self, request: model_pb2.UnloadVersionRequest, context: Context
    ) -> model_pb2.Version:
        """Frees memory."""
        record = await self._registry.unload(
            _named(request.version), keep_rollback=not request.release_rollback
        )
        return self._version(record)

    async def DeleteVersion(  # noqa: N802 - named by the proto
        self, request: model_pb2.DeleteVersionRequest, context: Context
    ) -> model_pb2.DeleteVersionResponse:
        """Removes a version and its files."""
        await self._registry.delete(_named(request.version))
        return model_pb2.DeleteVersionResponse()

    async def MergeVersions(  # noqa: N802 - named by the proto
        self, request: model_pb2.MergeVersionsRequest, context: Context
    ) -> model_pb2.Version:
        """Interpolates the weights of two versions of one model, or averages several."""
        if request.versions:
            _check_average(request)
            found = [
                self._registry.get_version(_named(version, f"versions[{place}]"))
                for place, version in enumerate(request.versions)
            ]
            _check_one_model(found)
            record = await self._registry.make(
                found[0].model, lambda: self._average([version.id for version in found])
            )
            return self._version(record)
        base = self._registry.get_version(_named(request.base_version, "base_version"))
        tuned = self._registry.get_version(_named(request.tuned_version, "tuned_version"))
        _check_merge(base, tuned, request.alpha)
        record = await self._registry.make(
            tuned.model, lambda: self._merge(base.id, tuned.id, request.alpha)
        )
        return self._version(record)

    async def Export(  # noqa: N802 - named by the proto
        self, request: model_pb2.ExportRequest, context: Context
    ) -> job_pb2.Job:
        """Queues a job that writes a file."""
        known = await self._jobs.requested(JobKind.EXPORT, request.request_id, fingerprint(request))
        return job_to_proto(known or await self._jobs.submit(export_job(request, self._registry)))

    async def ImportVersion(  # noqa: N802 - named by the proto
        self, request: model_pb2.ImportVersionRequest, context: Context
    ) -> job_pb2.Job:
        """Queues a job that makes a version of an artifact."""
        mark = fingerprint(request)
        known = await self._jobs.requested(JobKind.IMPORT, request.request_id, mark)
        return job_to_proto(
            known or await self._jobs.submit(await import_job(request, self._artifacts))
        )

    async def WatchModels(  # noqa: N802 - named by the proto
        self, request: model_pb2.WatchModelsRequest, context: Context
    ) -> AsyncIterator[model_pb2.Model]:
        """What came after the revisions that were seen, the state now, then each change."""
        after = dict(request.after_revisions)
        async with aclosing(self._registry.watch(request.model, after)) as states:
            async for state in states:
                yield model_to_proto(state)

    async def DescribeArchitectures(  # noqa: N802 - named by the proto
        self, request: model_pb2.DescribeArchitecturesRequest, context: Context
    ) -> model_pb2.DescribeArchitecturesResponse:
        """By name; backbones with the first page."""
        page = PageRequest.parse(request.page_size, request.page_token, listing="architectures")
        known = await asyncio.to_thread(self._describe_architectures)
        rows, token = page.select(known, lambda row: (row.name,))
        return model_pb2.DescribeArchitecturesResponse(
            architectures=[architecture_to_proto(row) for row in rows],
            next_page_token=token,
            backbones=[]
            if request.page_token
            else [model_pb2.Backbone(**asdict(b)) for b in BACKBONES],
        )

    def _version(self, record: VersionRecord) -> model_pb2.Version:
        return version_to_proto(record, self._registry.version_state(record.id))


def model_to_proto(state: ModelState) -> model_pb2.Model:
    """As the wire has it."""
    model = model_pb2.Model(
        name=state.name,
        live_version=state.live_version,
        previous_version=state.previous_version,
        staged_versions=state.staged_versions,
        etag=state.etag,
        space_id=state.space_id,
        revision=state.revision,
    )
    if state.change_time is not None:
        model.change_time.FromDatetime(state.change_time)
    return model


def version_to_proto(record: VersionRecord, state: VersionState) -> model_pb2.Version:
    """As the wire has it; metrics in order of name."""
    manifest, spec = record.manifest, record.manifest.spec
    version = model_pb2.Version(
        id=record.id,
        model=record.model,
        state=_STATES[state],
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
    )
    version.create_time.FromDatetime(record.create_time)
    for name, value in sorted(record.metrics.items()):
        version.metrics.add(name=name, value=value)
    if (lineage := record.lineage) is not None:
        version.lineage.job = lineage.job
        version.lineage.datasets.update(lineage.datasets)
        ParseDict(dict(lineage.config), version.lineage.config)
    return version


def architecture_to_proto(info: ArchitectureInfo) -> model_pb2.Architecture:
    """As the wire has it."""
    return model_pb2.Architecture(
        name=info.name,
        pretrained=info.pretrained,
        dim=info.dim,
        image_size=info.image_size,
        context_length=info.context_length,
    )


def _newest_first(record: VersionRecord) -> Key:
    return -record.create_time.timestamp(), record.id


def _named(version: str, field: str = "version") -> str:
    if not version:
        raise InvalidArgument.field(field, "must be given")
    return version


def _check_merge(base: VersionRecord, tuned: VersionRecord, alpha: float) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise InvalidArgument.field("alpha", f"{alpha} is not in [0, 1]")
    _check_one_model([base, tuned])


def _check_average(request: model_pb2.MergeVersionsRequest) -> None:
    if request.base_version or request.tuned_version or request.alpha:
        raise InvalidArgument.field("versions", "contradicts base_version, tuned_version and alpha")
    count = len(set(request.versions))
    if count != len(request.versions) or not 2 <= count <= MOST_AVERAGED:
        raise InvalidArgument.field("versions", f"must be 2 to {MOST_AVERAGED}, all different")


def _check_one_model(versions: Sequence[VersionRecord]) -> None:
    models = sorted({version.model for version in versions})
    if len(models) > 1:
        raise FailedPrecondition(
            f"versions of several models: {', '.join(models)}", reason="VERSION_OF_ANOTHER_MODEL"
        )
