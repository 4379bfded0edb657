"""What a request to fine-tune or to measure asks for, checked field by field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from google.protobuf.struct_pb2 import Struct

from hotclip_proto.v1 import finetune_pb2 as pb
from hotclip_server.errors import FieldViolation, InvalidArgument
from hotclip_server.jobs.specs import ActivationRule, EarlyStopping, Isolation, Tracker
from hotclip_server.services.datasets import name_violations, request_id_violations
from hotclip_server.services.finetune_choices import CHOICES, choice_of
from hotclip_server.training.config import (
    CROPS,
    AugmentConfig,
    LoraConfig,
    Matrix,
    MetricLossConfig,
    MiningConfig,
    TrainConfig,
)
from hotclip_server.training.errors import InvalidTrainConfig
from hotclip_server.training.metric_names import Option
from hotclip_server.training.metrics import DEFAULT_K
from hotclip_server.training.monitors import EPOCH_LOSS, MONITOR, higher_is_better, is_monitor
from hotclip_server.training.prompts import DEFAULT_PROMPT, PLACE

DEFAULT_VAL_SPLIT = 0.1
LARGEST_VAL_SPLIT = 0.5
LARGEST_K = 1000
MOST_ALPHAS = 32
MOST_PROMPTS = 256
LONGEST_PROMPT = 512
DEFAULT_KEPT = 2
_NEEDS = "needs held-out data: eval_dataset, query_dataset or val_split"

_OPTIONAL = (
    *("epochs", "max_steps", "batch_size", "learning_rate", "warmup", "weight_decay"),
    *("clip_norm", "ema", "layer_decay", "negatives", "preserve", "beta1", "beta2"),
    *("momentum", "scheduler_cycles", "scheduler_power"),
)
_PLAIN = ("lock_image", "lock_text", "freeze_layers", "chunk_size", "seed")
# Narrower than the trainer's own.
_RANGES = {"epochs": (1, 1000), "batch_size": (2, 65_536), "chunk_size": (0, 65_536)}
_CHOSEN = ("loss", "positives", "method", "scheduler", "optimizer", "precision")
_ONLY_WITH = (
    ("beta1", "optimizer", ("adamw", "adam")),
    ("beta2", "optimizer", ("adamw", "adam")),
    ("momentum", "optimizer", ("sgd",)),
    ("scheduler_cycles", "scheduler", ("cosine_with_restarts",)),
    ("scheduler_power", "scheduler", ("polynomial",)),
)
"""Settings that other choices than these would leave without effect."""


class TrainingGround(Protocol):
    """Where runs train, and on which models."""

    def problems(
        self, config: TrainConfig, version: str, device: str, pairs: int
    ) -> Sequence[FieldViolation]:
        """What cannot be done there with that version and so many pairs. Blocks."""


@dataclass(frozen=True, kw_only=True)
class FineTuneWish:
    """A checked request without the names of models and datasets."""

    spec: Mapping[str, Any]
    """Fields of FineTuneSpec."""


def check_fine_tune(request: pb.FineTuneRequest) -> FineTuneWish:
    """What was asked for, with defaults where nothing was.

    Raises:
        InvalidArgument: names every bad field.
    """
    problems = [
        *name_violations(request.name, request.description),
        *request_id_violations(request.request_id),
        *_choice_problems(request),
        *_useless_problems(request),
        *_data_problems(request),
        *_prompt_problems(request.prompts),
        *_k_problems(request),
        *_monitor_problems(request),
        *_end_problems(request),
        *_stopping_problems(request),
    ]
    config = _config(request, problems)
    if config is None or problems:
        raise InvalidArgument.fields(problems)
    spec = {
        "val_split": _val_split(request),
        "monitor": request.monitor or MONITOR,
        "activation": ActivationRule(choice_of("activation", request.activation)),
        "config": config,
        "prompts": prompts_of(request.prompts),
        "wise_ft": request.wise_ft if request.HasField("wise_ft") else None,
        "soup": request.soup,
        "early_stopping": _stopping(request),
        "keep_checkpoints": _kept(request),
        "export_onnx": request.export_onnx,
        "isolation": Isolation(choice_of("isolation", request.isolation)),
        "device": request.device,
        "trackers": tuple(Tracker(name) for name in request.trackers),
        "k": _k(request),
        "compat": choice_of("compat", request.compat),
    }
    return FineTuneWish(spec=spec)


def check_evaluate(request: pb.EvaluateRequest) -> int:
    """The length of the lists.

    Raises:
        InvalidArgument: names every bad field.
    """
    problems = [
        *name_violations(request.name),
        *request_id_violations(request.request_id),
        *_prompt_problems(request.prompts),
        *_k_problems(request),
    ]
    if not request.dataset:
        problems.append(FieldViolation("dataset", "is required"))
    if request.compat not in CHOICES["compat"]:
        problems.append(FieldViolation("compat", f"{request.compat} is not known"))
    if len(request.alphas) > MOST_ALPHAS or not all(0 <= alpha <= 1 for alpha in request.alphas):
        problems.append(FieldViolation("alphas", f"must be at most {MOST_ALPHAS} in [0, 1]"))
    if request.base_version and not request.alphas:
        problems.append(FieldViolation("base_version", "is of use with alphas alone"))
    if problems:
        raise InvalidArgument.fields(problems)
    return _k(request)


def prompts_of(given: Sequence[str]) -> tuple[str, ...]:
    """Templates of texts of labelled images."""
    return tuple(dict.fromkeys(given)) or (DEFAULT_PROMPT,)


def _k(request: pb.FineTuneRequest | pb.EvaluateRequest) -> int:
    return request.k if request.HasField("k") else DEFAULT_K


def _k_problems(request: pb.FineTuneRequest | pb.EvaluateRequest) -> Iterator[FieldViolation]:
    if not 1 <= _k(request) <= LARGEST_K:
        yield FieldViolation("k", f"must be in 1 to {LARGEST_K}, is {request.k}")


def _config(request: pb.FineTuneRequest, problems: list[FieldViolation]) -> TrainConfig | None:
    """The training's part; what is wrong with it is added to `problems`."""
    values: dict[str, Any] = {name: getattr(request, name) for name in _PLAIN}
    values |= {f.name: value for f, value in request.ListFields() if f.name in _OPTIONAL}
    for name, (low, high) in _RANGES.items():
        if name in values and not low <= values[name] <= high:
            reason = f"must be in {low} to {high}, is {values.pop(name)}"
            problems.append(FieldViolation(name, reason))
    if values.get("warmup") == 1:
        values.pop("warmup")
        problems.append(FieldViolation("warmup", "must be below 1"))
    for name in _CHOSEN:
        if getattr(request, name) in CHOICES[name]:
            values[name] = choice_of(name, getattr(request, name))
    try:
        return TrainConfig(
            **values,
            lora=_lora(request.lora),
            metric_loss=_metric_loss(request),
            mining=_mining(request),
            augment=CROPS if request.augment else AugmentConfig(),
        )
    except InvalidTrainConfig as error:
        problems += [FieldViolation(v.field, v.reason) for v in error.violations]
        return None


def _lora(given: pb.Lora) -> LoraConfig:
    default = LoraConfig()
    return LoraConfig(
        rank=given.rank if given.HasField("rank") else default.rank,
        alpha=given.alpha if given.HasField("alpha") else None,
        dora=given.dora,
        targets=cast(tuple[Matrix, ...], tuple(given.targets)) or default.targets,
    )


def _metric_loss(request: pb.FineTuneRequest) -> MetricLossConfig | None:
    if not request.HasField("metric_loss"):
        return None
    given = request.metric_loss
    count = given.items_per_class if given.HasField("items_per_class") else None
    return MetricLossConfig(
        name=given.name,
        options=_options(given.options),
        miner=given.miner,
        miner_options=_options(given.miner_options),
        items_per_class=MetricLossConfig(name="").items_per_class if count is None else count,
    )


def _mining(request: pb.FineTuneRequest) -> MiningConfig | None:
    if not request.HasField("mining"):
        return None
    return MiningConfig(**{field.name: value for field, value in request.mining.ListFields()})


def _options(given: Struct) -> dict[str, Option]:
    """What is no number, boolean or string is left as text, which no option is."""
    found = cast(Mapping[str, Any], dict(given.items()))
    return {
        name: value if isinstance(value, float | bool | str) else str(value)
        for name, value in sorted(found.items())
    }


def _choice_problems(request: pb.FineTuneRequest) -> Iterator[FieldViolation]:
    for name, known in CHOICES.items():
        if getattr(request, name) not in known:
            yield FieldViolation(name, f"{getattr(request, name)} is not known")
    for place, name in enumerate(request.trackers):
        if name not in list(Tracker):
            known_names = ", ".join(Tracker)
            reason = f"must be one of {known_names}, got {name!r}"
            yield FieldViolation(f"trackers[{place}]", reason)
    if len(set(request.trackers)) < len(request.trackers):
        yield FieldViolation("trackers", "names one twice")
    asked = choice_of("method", request.method) if request.method in CHOICES["method"] else ""
    if request.HasField("lora") and asked not in ("lora", "auto"):
        yield FieldViolation("lora", f"is of no use with the method {asked}")


def _useless_problems(request: pb.FineTuneRequest) -> Iterator[FieldViolation]:
    """What was given and would be without effect."""
    given = {field.name for field, _ in request.ListFields()}
    for name, by, kinds in _ONLY_WITH:
        chosen = CHOICES[by].get(getattr(request, by))
        if name in given and chosen is not None and chosen not in kinds:
            yield FieldViolation(name, f"is of no use with the {by} {chosen}")
    if request.HasField("epochs") and request.HasField("max_steps"):
        yield FieldViolation("max_steps", "is instead of epochs: give one of them")
    if request.loss == pb.LOSS_METRIC:
        reason = "is of no use with the loss metric, which knows classes alone"
        if request.positives in (pb.POSITIVES_SHARE, pb.POSITIVES_MASK):
            yield FieldViolation("positives", reason)
        if request.negatives:
            yield FieldViolation("negatives", reason)


def _data_problems(request: pb.FineTuneRequest) -> Iterator[FieldViolation]:
    if not request.train_dataset:
        yield FieldViolation("train_dataset", "is required")
    if not 0 <= _val_split(request) <= LARGEST_VAL_SPLIT:
        reason = f"must be in 0 to {LARGEST_VAL_SPLIT}, is {_val_split(request):g}"
        yield FieldViolation("val_split", reason)
    if request.HasField("val_split") and request.val_split and request.eval_dataset:
        yield FieldViolation("val_split", "contradicts eval_dataset: give one of them")
    if request.index_dataset and not _measured(request):
        yield FieldViolation("index_dataset", _NEEDS)


def _prompt_problems(prompts: Sequence[str]) -> Iterator[FieldViolation]:
    if len(prompts) > MOST_PROMPTS:
        reason = f"has {len(prompts)} entries, the limit is {MOST_PROMPTS}"
        yield FieldViolation("prompts", reason)
    for place, prompt in enumerate(prompts):
        size = len(prompt.encode())
        if PLACE not in prompt:
            yield FieldViolation(f"prompts[{place}]", f"has no {PLACE}")
        elif size > LONGEST_PROMPT:
            reason = f"has {size} bytes, the limit is {LONGEST_PROMPT}"
            yield FieldViolation(f"prompts[{place}]", reason)


def _monitor_problems(request: pb.FineTuneRequest) -> Iterator[FieldViolation]:
    name = request.monitor
    if name == EPOCH_LOSS:
        yield FieldViolation("monitor", f"{name} says nothing of held-out data, which decides")
    elif name and not is_monitor(name):
        yield FieldViolation("monitor", f"{name!r} is no metric of an epoch")
    elif name and not _measured(request):
        yield FieldViolation("monitor", f"{name} {_NEEDS}")


def _end_problems(request: pb.FineTuneRequest) -> Iterator[FieldViolation]:
    """What happens with the weights at the end."""
    if request.HasField("wise_ft") and not 0 <= request.wise_ft <= 1:
        yield FieldViolation("wise_ft", f"must be in 0 to 1, is {request.wise_ft:g}")
    if request.soup and not 2 <= request.soup <= 20:
        yield FieldViolation("soup", f"must be 0 or in 2 to 20, is {request.soup}")
    elif request.soup and not _measured(request):
        yield FieldViolation("soup", _NEEDS)
    if not 1 <= _kept(request) <= 100:
        yield FieldViolation("keep_checkpoints", f"must be in 1 to 100, is {_kept(request)}")


def _stopping_problems(request: pb.FineTuneRequest) -> Iterator[FieldViolation]:
    if not request.HasField("early_stopping"):
        return
    given, path = request.early_stopping, "early_stopping"
    # What the request itself names is checked there.
    monitor = given.monitor or ("" if request.monitor else MONITOR)
    if monitor and not is_monitor(monitor):
        yield FieldViolation(f"{path}.monitor", f"{monitor!r} is no metric of an epoch")
    elif monitor not in ("", EPOCH_LOSS) and not _measured(request):
        reason = f"{monitor} {_NEEDS}"
        yield FieldViolation(f"{path}.monitor", reason)
    if given.HasField("patience") and not 1 <= given.patience <= 1000:
        yield FieldViolation(f"{path}.patience", f"must be in 1 to 1000, is {given.patience}")
    if not (math.isfinite(given.min_delta) and given.min_delta >= 0):
        yield FieldViolation(f"{path}.min_delta", f"must be 0 or more, is {given.min_delta:g}")
    if given.mode not in pb.EarlyStopping.Mode.values():
        yield FieldViolation(f"{path}.mode", f"{given.mode} is not known")


def _stopping(request: pb.FineTuneRequest) -> EarlyStopping | None:
    if not request.HasField("early_stopping"):
        return None
    given, default = request.early_stopping, EarlyStopping()
    monitor = given.monitor or request.monitor or default.monitor
    modes = {pb.EarlyStopping.MODE_MIN: False, pb.EarlyStopping.MODE_MAX: True}
    return EarlyStopping(
        monitor=monitor,
        patience=given.patience if given.HasField("patience") else default.patience,
        min_delta=given.min_delta,
        higher=modes.get(given.mode, higher_is_better(monitor)),
    )


def _val_split(request: pb.FineTuneRequest) -> float:
    """Who gives held-out data or queries has something to measure with."""
    measured = request.eval_dataset or request.query_dataset
    default = 0.0 if measured else DEFAULT_VAL_SPLIT
    return request.val_split if request.HasField("val_split") else default


def _kept(request: pb.FineTuneRequest) -> int:
    return request.keep_checkpoints if request.HasField("keep_checkpoints") else DEFAULT_KEPT


def _measured(request: pb.FineTuneRequest) -> bool:
    """Whether there is data to measure with."""
    return bool(request.eval_dataset or request.query_dataset) or _val_split(request) > 0
