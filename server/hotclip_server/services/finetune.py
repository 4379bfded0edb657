"""FineTuneService: checks requests whole, then queues jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

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
from hotclip_server.jobs.specs import ActivationRule, EvaluateSpec, FineTuneSpec
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.services.datasets import name_violations, request_id_violations
from hotclip_server.services.jobs import job_to_proto
from hotclip_server.training.config import AugmentConfig, Scheduler, TrainConfig
from hotclip_server.training.errors import InvalidTrainConfig

Context = grpc.aio.ServicerContext[Any, Any]

DEFAULT_VAL_SPLIT = 0.1
LARGEST_VAL_SPLIT = 0.5
DEFAULT_K = 20
LARGEST_K = 1000
MOST_ALPHAS = 32

_SCHEDULERS: dict[int, Scheduler] = {
    finetune_pb2.SCHEDULER_UNSPECIFIED: "cosine",
    finetune_pb2.SCHEDULER_COSINE: "cosine",
    finetune_pb2.SCHEDULER_LINEAR: "linear",
    finetune_pb2.SCHEDULER_CONSTANT: "constant",
}
_ACTIVATIONS = {
    finetune_pb2.ACTIVATION_UNSPECIFIED: ActivationRule.IF_BETTER,
    finetune_pb2.ACTIVATION_IF_BETTER: ActivationRule.IF_BETTER,
    finetune_pb2.ACTIVATION_ALWAYS: ActivationRule.ALWAYS,
    finetune_pb2.ACTIVATION_NEVER: ActivationRule.NEVER,
}
_LOSSES = (finetune_pb2.LOSS_UNSPECIFIED, finetune_pb2.LOSS_INFO_NCE)
_OPTIONAL = (
    *("epochs", "max_steps", "batch_size", "learning_rate", "warmup"),
    *("weight_decay", "clip_norm", "ema"),
)
# Narrower than the trainer's own.
_RANGES = {"epochs": (1, 1000), "batch_size": (2, 65_536)}


class FineTuneService(finetune_pb2_grpc.FineTuneServiceServicer):
    """See finetune.proto."""

    def __init__(self, jobs: JobRunner, datasets: DatasetStore, models: ModelRegistry) -> None:
        self._jobs = jobs
        self._datasets = datasets
        self._models = models

    async def FineTune(  # noqa: N802 - named by the proto
        self, request: finetune_pb2.FineTuneRequest, context: Context
    ) -> job_pb2.Job:
        """Checks the whole request, then queues it."""
        mark = fingerprint(request)
        known = await self._jobs.requested(JobKind.FINE_TUNE, request.request_id, mark)
        if known is not None:
            return job_to_proto(known)
        config, val_split = check_fine_tune(request)
        model, version = self._version(request.model, request.base_version, "base_version")
        train = await self._datasets.get(request.train_dataset)
        _check_trainable(train)
        spec = FineTuneSpec(
            model=model,
            base_version=version,
            train_dataset=train.id,
            eval_dataset=await self._dataset_id(request.eval_dataset),
            index_dataset=await self._dataset_id(request.index_dataset),
            val_split=val_split,
            activation=_ACTIVATIONS[request.activation],
            config=config,
        )
        if request.validate_only:
            await self._check_name_free(request.name)
            return job_pb2.Job(
                name=request.name,
                kind=job_pb2.JOB_KIND_FINE_TUNE,
                model=model,
                description=request.description,
            )
        new = NewJob(
            kind=JobKind.FINE_TUNE,
            spec=spec.to_json(),
            name=request.name,
            description=request.description,
            model=model,
            request_id=request.request_id,
            fingerprint=mark,
        )
        return job_to_proto(await self._jobs.submit(new))

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
            base_version=self._base(request, version),
            alphas=tuple(sorted(set(request.alphas))),
        )
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

    def _base(self, request: finetune_pb2.EvaluateRequest, version: str) -> str:
        """Where the line of a sweep begins; empty if none was asked for."""
        if not request.alphas:
            return ""
        base = request.base_version or self._models.get_version(version).manifest.parent
        if not base:
            problem = f"version {version} has no parent: name the version at alpha 0"
            raise InvalidArgument.field("base_version", problem)
        return self._models.get_version(base).id

    async def _dataset_id(self, dataset: str) -> str:
        return (await self._datasets.get(dataset)).id if dataset else ""

    async def _check_name_free(self, name: str) -> None:
        try:
            await self._jobs.get(name)
        except NotFound:
            return
        raise AlreadyExists(f"a job named {name!r} exists", reason="JOB_NAME_TAKEN")


def check_fine_tune(request: finetune_pb2.FineTuneRequest) -> tuple[TrainConfig, float]:
    """The configuration and the share held out.

    Raises:
        InvalidArgument: names every bad field.
    """
    violations = [
        *name_violations(request.name, request.description),
        *request_id_violations(request.request_id),
        *_choice_violations(request),
    ]
    if not request.train_dataset:
        violations.append(FieldViolation("train_dataset", "is required"))
    given = request.HasField("val_split")
    val_split = request.val_split if given else DEFAULT_VAL_SPLIT
    if not 0 <= val_split <= LARGEST_VAL_SPLIT:
        violations.append(
            FieldViolation("val_split", f"must be in 0 to {LARGEST_VAL_SPLIT}, is {val_split:g}")
        )
    if given and val_split and request.eval_dataset:
        violations.append(FieldViolation("val_split", "contradicts eval_dataset: give one of them"))
    values = {f.name: value for f, value in request.ListFields() if f.name in _OPTIONAL}
    for name, (low, high) in _RANGES.items():
        if name in values and not low <= values[name] <= high:
            reason = f"must be in {low} to {high}, is {values.pop(name)}"
            violations.append(FieldViolation(name, reason))
    if values.get("warmup") == 1:
        values.pop("warmup")
        violations.append(FieldViolation("warmup", "must be below 1"))
    augment = request.augment or not request.HasField("augment")
    config = None
    try:
        config = TrainConfig(
            **values,
            scheduler=_SCHEDULERS.get(request.scheduler, "cosine"),
            lock_image=request.lock_image,
            lock_text=request.lock_text,
            augment=AugmentConfig() if augment else AugmentConfig(crop=(1.0, 1.0)),
            seed=request.seed,
        )
    except InvalidTrainConfig as error:
        violations += [FieldViolation(v.field, v.reason) for v in error.violations]
    if config is None or violations:
        raise InvalidArgument.fields(violations)
    return config, val_split


def check_evaluate(request: finetune_pb2.EvaluateRequest) -> int:
    """The length of the lists.

    Raises:
        InvalidArgument: names every bad field.
    """
    violations = [
        *name_violations(request.name),
        *request_id_violations(request.request_id),
    ]
    if not request.dataset:
        violations.append(FieldViolation("dataset", "is required"))
    k = request.k if request.HasField("k") else DEFAULT_K
    if not 1 <= k <= LARGEST_K:
        violations.append(FieldViolation("k", f"must be in 1 to {LARGEST_K}, is {k}"))
    if len(request.alphas) > MOST_ALPHAS or not all(0 <= alpha <= 1 for alpha in request.alphas):
        violations.append(FieldViolation("alphas", f"must be at most {MOST_ALPHAS} in [0, 1]"))
    if request.base_version and not request.alphas:
        violations.append(FieldViolation("base_version", "is of use with alphas alone"))
    if violations:
        raise InvalidArgument.fields(violations)
    return k


def fingerprint(request: finetune_pb2.FineTuneRequest | finetune_pb2.EvaluateRequest) -> str:
    """sha256 of what was asked, hex."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()


def _choice_violations(request: finetune_pb2.FineTuneRequest) -> Iterator[FieldViolation]:
    for name, known in (
        ("scheduler", _SCHEDULERS),
        ("activation", _ACTIVATIONS),
        ("loss", _LOSSES),
    ):
        if getattr(request, name) not in known:
            yield FieldViolation(name, f"{getattr(request, name)} is not known")


def _check_trainable(dataset: DatasetRecord) -> None:
    if dataset.counts.images < 2:
        raise InvalidArgument.field(
            "train_dataset", f"{dataset.name!r} has one image, training needs two at least"
        )
