"""A FineTuneRequest from keywords; what both clients send."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from hotclip import _finetuning as names
from hotclip._message import filled, put, unfit
from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import finetune_pb2

Options: TypeAlias = Mapping[str, Any]
Freeze: TypeAlias = "bool | int | str | Sequence[str]"


def finetune_request(
    *,
    model: str,
    base_version: str,
    val_split: float | None,
    monitor: str,
    epochs: int | None,
    max_steps: int | None,
    batch_size: int | None,
    chunk_size: int,
    method: names.MethodName,
    lora: Options | None,
    freeze: Freeze,
    lock_image: bool,
    lock_text: bool,
    loss: str,
    loss_options: Options | None,
    miner: str,
    miner_options: Options | None,
    items_per_class: int | None,
    positives: names.PositivesName,
    negatives: int | None,
    mining: bool | str | Options | None,
    prompts: Sequence[str],
    preserve: float | None,
    optimizer: str,
    optimizer_options: Options | None,
    learning_rate: float | None,
    warmup: float | None,
    scheduler: names.SchedulerName,
    scheduler_options: Options | None,
    weight_decay: float | None,
    layer_decay: float | None,
    clip_norm: float | None,
    ema: float | None,
    precision: names.PrecisionName,
    augment: bool | None,
    seed: int,
    early_stopping: bool | Options | None,
    keep_checkpoints: int | None,
    wise_ft: float | Options | None,
    soup: int,
    export_onnx: bool,
    activation: names.ActivationName,
    isolation: names.IsolationName,
    device: str,
    trackers: Sequence[names.TrackerName],
    k: int | None,
    compat: names.CompatName,
    name: str,
    description: str,
    request_id: str,
    validate_only: bool,
) -> finetune_pb2.FineTuneRequest:
    """The request without its datasets. Raises InvalidArgument naming the first bad field."""
    kind, metric = names.loss_of(loss)
    values = {
        "model": model,
        "base_version": base_version,
        "val_split": val_split,
        "monitor": monitor,
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "chunk_size": chunk_size,
        "method": names.method_of(method),
        "lock_image": lock_image,
        "lock_text": lock_text,
        "loss": kind,
        "positives": names.positives_of(positives),
        "negatives": negatives,
        "prompts": [prompts] if isinstance(prompts, str) else prompts,
        "preserve": preserve,
        "optimizer": names.optimizer_of(optimizer),
        "learning_rate": learning_rate,
        "warmup": warmup,
        "scheduler": names.scheduler_of(scheduler),
        "weight_decay": weight_decay,
        "layer_decay": layer_decay,
        "clip_norm": clip_norm,
        "ema": ema,
        "precision": names.precision_of(precision),
        "augment": augment,
        "seed": seed,
        "keep_checkpoints": keep_checkpoints,
        "wise_ft": _wise_ft(wise_ft),
        "soup": soup,
        "export_onnx": export_onnx,
        "activation": names.activation_of(activation),
        "isolation": names.isolation_of(isolation),
        "device": device,
        "trackers": [trackers] if isinstance(trackers, str) else trackers,
        "k": k,
        "compat": names.compat_of(compat),
        "name": name,
        "description": description,
        "request_id": request_id or uuid.uuid4().hex,
        "validate_only": validate_only,
    }
    request = filled(finetune_pb2.FineTuneRequest, values)
    if lora is not None:
        known = _known("lora", lora, ("rank", "alpha", "dora", "targets"))
        request.lora.CopyFrom(filled(finetune_pb2.Lora, known, "lora"))
    _set_metric_loss(request, metric, loss_options, miner, miner_options, items_per_class)
    _set_mining(request, mining)
    _set_freeze(request, freeze)
    _set_optimizer(request, optimizer_options)
    _set_scheduler(request, scheduler_options)
    _set_stopping(request, early_stopping)
    return request


def _known(field: str, given: Options, known: Sequence[str]) -> dict[str, Any]:
    """The options. Raises InvalidArgument for one that is not known."""
    if not isinstance(given, Mapping):
        raise InvalidArgument.field(field, f"must have some of {', '.join(known)} by name")
    for name in given:
        if name not in known:
            raise InvalidArgument.field(f"{field}.{name}", f"is none of {', '.join(known)}")
    return dict(given)


def _set_metric_loss(
    request: finetune_pb2.FineTuneRequest,
    name: str,
    options: Options | None,
    miner: str,
    miner_options: Options | None,
    items_per_class: int | None,
) -> None:
    if not name:
        for field, asked in (
            ("loss_options", bool(options)),
            ("miner", bool(miner)),
            ("miner_options", bool(miner_options)),
            ("items_per_class", items_per_class is not None),
        ):
            if asked:
                known = ", ".join(names.METRIC_LOSSES)
                raise InvalidArgument.field(field, f"is of use with the losses {known} alone")
        return
    request.metric_loss.name = name
    request.metric_loss.miner = names.miner_of(miner)
    if items_per_class is not None:
        put(request.metric_loss, "items_per_class", items_per_class, "items_per_class")
    for field, given, target in (
        ("loss_options", options, request.metric_loss.options),
        ("miner_options", miner_options, request.metric_loss.miner_options),
    ):
        try:
            target.update(dict(given or {}))
        except (ValueError, TypeError) as error:
            problem = f"must hold numbers, booleans and strings: {error}"
            raise InvalidArgument.field(field, problem) from error


def _set_mining(request: finetune_pb2.FineTuneRequest, mining: bool | str | Options | None) -> None:
    """A text is the name of a collection."""
    if mining is None or mining is False:
        return
    options = {"collection": mining} if isinstance(mining, str) else mining
    known = ("collection", "count", "pool", "ceiling", "every")
    given = {} if options is True else _known("mining", options, known)
    request.mining.CopyFrom(filled(finetune_pb2.Mining, given, "mining"))


def _set_freeze(request: finetune_pb2.FineTuneRequest, freeze: Freeze) -> None:
    """True leaves only the projections to train; a number is of blocks; else names of towers."""
    if isinstance(freeze, bool):
        if freeze and request.method not in (
            finetune_pb2.METHOD_AUTO,
            finetune_pb2.METHOD_PROJECTION,
        ):
            raise InvalidArgument.field("freeze", "True means the method projection")
        if freeze:
            request.method = finetune_pb2.METHOD_PROJECTION
    elif isinstance(freeze, int):
        if freeze < 0:
            raise InvalidArgument.field("freeze", f"must be 0 or more blocks, is {freeze}")
        put(request, "freeze_layers", freeze, "freeze")
    elif not isinstance(freeze, Sequence):
        raise InvalidArgument.field("freeze", f"can't be {freeze!r}")
    else:
        for tower in [freeze] if isinstance(freeze, str) else freeze:
            match tower:
                case "image" | "clip-vision":
                    request.lock_image = True
                case "text" | "clip-text":
                    request.lock_text = True
                case _:
                    known = "image, clip-vision, text, clip-text"
                    raise InvalidArgument.field("freeze", f"{tower!r} is none of {known}")


def _set_optimizer(request: finetune_pb2.FineTuneRequest, options: Options | None) -> None:
    known = ("betas", "beta1", "beta2", "momentum", "weight_decay")
    given = _known("optimizer_options", options or {}, known)
    if "betas" in given:
        try:
            given["beta1"], given["beta2"] = given.pop("betas")
        except (TypeError, ValueError) as error:
            raise InvalidArgument.field("optimizer_options.betas", "must be two") from error
    for name, value in given.items():
        if name == "weight_decay" and request.HasField("weight_decay"):
            raise InvalidArgument.field("optimizer_options.weight_decay", "is given twice")
        put(request, name, value, f"optimizer_options.{name}")


def _set_scheduler(request: finetune_pb2.FineTuneRequest, options: Options | None) -> None:
    known = {"cycles": "scheduler_cycles", "num_cycles": "scheduler_cycles"}
    known["power"] = "scheduler_power"
    for name, value in _known("scheduler_options", options or {}, tuple(known)).items():
        put(request, known[name], value, f"scheduler_options.{name}")


def _set_stopping(request: finetune_pb2.FineTuneRequest, stopping: bool | Options | None) -> None:
    if stopping is None or stopping is False:
        return
    known = ("monitor", "patience", "min_delta", "mode")
    given = _known("early_stopping", {} if stopping is True else stopping, known)
    given["mode"] = names.mode_of(given.get("mode", "auto"))
    request.early_stopping.CopyFrom(filled(finetune_pb2.EarlyStopping, given, "early_stopping"))


def _wise_ft(given: float | Options | None) -> float | None:
    if not isinstance(given, Mapping):
        return given
    options = _known("wise_ft", given, ("finetuned_weight", "alpha"))
    if len(options) != 1:
        raise InvalidArgument.field("wise_ft", "must have finetuned_weight or its alias alpha")
    [(name, value)] = options.items()
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise unfit(f"wise_ft.{name}", value, error) from error
