"""FineTuneService: checks requests whole, then queues jobs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any, cast

import grpc

from hotclip_proto.v1 import finetune_pb2, finetune_pb2_grpc, job_pb2
from hotclip_server.datasets.records import DatasetRecord
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
)
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.specs import EvaluateSpec, FineTuneSpec
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.services.finetune_choices import choice_of
from hotclip_server.services.finetune_effects import method_problems, prompt_problems
from hotclip_server.services.finetune_requests import (
    TrainingGround,
    check_evaluate,
    check_fine_tune,
    prompts_of,
)
from hotclip_server.services.jobs import job_config, job_to_proto
from hotclip_server.trackers.known import require_installed
from hotclip_server.training.metrics import Compat

Context = grpc.aio.ServicerContext[Any, Any]
SHOWN = 3
"""Collections that advice names."""


class FineTuneService(finetune_pb2_grpc.FineTuneServiceServicer):
    """See finetune.proto.

    Args:
        collections: Whose vectors a fine-tune may outdate, and whose images may be mined.
    """

    def __init__(
        self,
        jobs: JobRunner,
        datasets: DatasetStore,
        models: ModelRegistry,
        ground: TrainingGround,
        collections: Catalogue,
    ) -> None:
        self._jobs = jobs
        self._datasets = datasets
        self._models = models
        self._ground = ground
        self._collections = collections

    async def FineTune(  # noqa: N802 - named by the proto
        self, request: finetune_pb2.FineTuneRequest, context: Context
    ) -> job_pb2.Job:
        """Checks the whole request, then queues it."""
        mark = fingerprint(request)
        known = await self._jobs.requested(JobKind.FINE_TUNE, request.request_id, mark)
        if known is not None:
            return job_to_proto(known)
        wish = check_fine_tune(request)
        require_installed(wish.spec["trackers"])
        self._check_minable(request.mining.collection)
        model, version = self._version(request.model, request.base_version, "base_version")
        train = await self._datasets.get(request.train_dataset)
        _check_trainable(train, splits=not request.eval_dataset and wish.spec["val_split"] > 0)
        old = await self._datasets.get(request.replay_dataset) if request.replay_dataset else None
        pairs = train.counts.pairs + (old.counts.pairs if old else 0)
        # Once: the run counts without what is held out, and would choose another.
        config = wish.spec["config"].decided(pairs)
        spec = FineTuneSpec(
            model=model,
            base_version=version,
            train_dataset=train.id,
            eval_dataset=await self._dataset_id(request.eval_dataset),
            query_dataset=await self._dataset_id(request.query_dataset),
            index_dataset=await self._dataset_id(request.index_dataset),
            replay_dataset=old.id if old else "",
            **{**wish.spec, "config": config},
        )
        problems = [
            *method_problems(request, config.method, pairs),
            *await self._prompt_problems(
                request.prompts,
                *(request.train_dataset, request.replay_dataset),
                *(request.eval_dataset, request.query_dataset, request.index_dataset),
            ),
            *await asyncio.to_thread(
                self._ground.problems, spec.config, version, request.device, pairs
            ),
        ]
        if problems:
            raise InvalidArgument.fields(problems)
        advice = self._advice(spec)
        if request.validate_only:
            await self._check_name_free(request.name)
            return job_pb2.Job(
                name=request.name,
                kind=job_pb2.JOB_KIND_FINE_TUNE,
                model=model,
                description=request.description,
                advice=advice,
                config=job_config(spec.to_json()),
            )
        new = NewJob(
            kind=JobKind.FINE_TUNE,
            spec=spec.to_json(),
            name=request.name,
            description=request.description,
            model=model,
            request_id=request.request_id,
            fingerprint=mark,
            message=advice,
        )
        queued = job_to_proto(await self._jobs.submit(new))
        queued.advice = advice
        return queued

    async def Evaluate(  # noqa: N802 - named by the proto
        self, request: finetune_pb2.EvaluateRequest, context: Context
    ) -> job_pb2.Job:
        """Queues a measurement."""
        mark = fingerprint(request)
        known = await self._jobs.requested(JobKind.EVALUATE, request.request_id, mark)
        if known is not None:
            return job_to_proto(known)
        k = check_evaluate(request)
        model, version = self._version(request.model, request.version, "version")
        spec = EvaluateSpec(
            model=model,
            version=version,
            dataset=(await self._datasets.get(request.dataset)).id,
            index_dataset=await self._dataset_id(request.index_dataset),
            k=k,
            compat=cast(Compat, choice_of("compat", request.compat)),
            base_version=self._base(request, version),
            alphas=tuple(sorted(set(request.alphas))),
            prompts=prompts_of(request.prompts),
        )
        problems = await self._prompt_problems(
            request.prompts, request.dataset, request.index_dataset
        )
        if problems:
            raise InvalidArgument.fields(problems)
        new = NewJob(
            kind=JobKind.EVALUATE,
            spec=spec.to_json(),
            name=request.name,
            model=model,
            request_id=request.request_id,
            fingerprint=mark,
        )
        return job_to_proto(await self._jobs.submit(new))

    def _version(self, model: str, version: str, field: str) -> tuple[str, str]:
        """The names of the model and of the version; the live one if none is given."""
        state = self._models.model_state(model)
        if not version and not state.live_version:
            raise FailedPrecondition(
                f"model {state.name!r} has no live version: name one", reason="NO_LIVE_VERSION"
            )
        if not version:
            return state.name, state.live_version
        record = self._models.get_version(version)
        if record.model != state.name:
            problem = f"version {version} is of model {record.model!r}, not {state.name!r}"
            raise InvalidArgument.field(field, problem)
        return state.name, record.id

    def _check_minable(self, collection: str) -> None:
        """Whether its images are kept; empty: none is asked for."""
        if collection and not self._collections.get(collection).keep_sources:
            raise FailedPrecondition(
                f"collection {collection!r} does not keep its sources, so there are no images",
                reason="SOURCES_MISSING",
            )

    def _advice(self, spec: FineTuneSpec) -> str:
        """Stored vectors outlive a fine-tune that leaves their tower as it is."""
        if spec.config.locks_image:
            return ""
        encoder = self._models.get_version(spec.base_version).manifest.spec.vision_encoder_id
        names = self._collections.of_image_encoder(encoder)
        if not names:
            return ""
        shown = ", ".join(names[:SHOWN]) + (" and others" if len(names) > SHOWN else "")
        return (
            f"image vectors of {shown} are of {spec.base_version} and must be made anew for the "
            "result; with lock_image, or the method lit, they stay valid: a collection of images "
            "alone that is bound to the live version follows when the result goes live, any other "
            "takes a reindex, which copies them"
        )

    def _base(self, request: finetune_pb2.EvaluateRequest, version: str) -> str:
        """Where the line of a sweep begins; empty if none was asked for."""
        if not request.alphas:
            return ""
        base = request.base_version or self._models.get_version(version).manifest.parent
        if not base:
            problem = f"version {version} has no parent: name the version at alpha 0"
            raise InvalidArgument.field("base_version", problem)
        return self._models.get_version(base).id

    async def _prompt_problems(
        self, prompts: Sequence[str], *datasets: str
    ) -> list[FieldViolation]:
        """What is wrong with templates for these datasets; an empty name is none."""
        if not prompts:
            return []
        records = [await self._datasets.get(dataset) for dataset in datasets if dataset]
        return list(prompt_problems(prompts, records))

    async def _dataset_id(self, dataset: str) -> str:
        return (await self._datasets.get(dataset)).id if dataset else ""

    async def _check_name_free(self, name: str) -> None:
        try:
            await self._jobs.get(name)
        except NotFound:
            return
        raise AlreadyExists(f"a job named {name!r} exists", reason="JOB_NAME_TAKEN")


def fingerprint(request: finetune_pb2.FineTuneRequest | finetune_pb2.EvaluateRequest) -> str:
    """sha256 of what was asked, hex."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()


def _check_trainable(dataset: DatasetRecord, *, splits: bool) -> None:
    images, least = dataset.counts.images, 3 if splits else 2
    if images < least:
        more = ", of which val_split holds one out" if splits else ""
        problem = f"{dataset.name!r} has {images} images, training needs {least} at least{more}"
        raise InvalidArgument.field("train_dataset", problem)
