"""Names that a fine-tune is asked for with, as the server understands them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, TypeVar

from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import finetune_pb2

ActivationName: TypeAlias = Literal["if_better", "always", "never"]
CompatName: TypeAlias = Literal["standard", "finetuner", "clip_benchmark"]
SchedulerName: TypeAlias = Literal[
    "cosine", "linear", "constant", "cosine_with_restarts", "polynomial"
]
MethodName: TypeAlias = Literal["auto", "full", "lora", "projection", "lit"]
PositivesName: TypeAlias = Literal["share", "mask", "off"]
PrecisionName: TypeAlias = Literal["auto", "fp32", "bf16"]
IsolationName: TypeAlias = Literal["in_process", "process"]
TrackerName: TypeAlias = Literal["tensorboard", "wandb", "mlflow"]

T = TypeVar("T")

# Names of other libraries for the same loss are understood; case, "-" and "_" don't count.
_LOSSES: Mapping[str, finetune_pb2.Loss.ValueType] = {
    "auto": finetune_pb2.LOSS_UNSPECIFIED,
    "infonce": finetune_pb2.LOSS_INFO_NCE,
    "clip": finetune_pb2.LOSS_INFO_NCE,
    "cliploss": finetune_pb2.LOSS_INFO_NCE,
    "contrastive": finetune_pb2.LOSS_INFO_NCE,
    "ntxent": finetune_pb2.LOSS_INFO_NCE,
    "multiplenegativesrankingloss": finetune_pb2.LOSS_INFO_NCE,
    "siglip": finetune_pb2.LOSS_SIGLIP,
    "sigliploss": finetune_pb2.LOSS_SIGLIP,
    "sigmoid": finetune_pb2.LOSS_SIGLIP,
}
METRIC_LOSSES = (
    *("AngularLoss", "CircleLoss", "ContrastiveLoss", "FastAPLoss"),
    *("GeneralizedLiftedStructureLoss", "IntraPairVarianceLoss", "LiftedStructureLoss"),
    *("MarginLoss", "MultiSimilarityLoss", "NCALoss", "NPairsLoss", "NTXentLoss"),
    *("SignalToNoiseRatioContrastiveLoss", "SmoothAPLoss", "SupConLoss", "TripletMarginLoss"),
    "TupletMarginLoss",
)
MINERS = (
    *("AngularMiner", "BatchEasyHardMiner", "BatchHardMiner", "MultiSimilarityMiner"),
    *("PairMarginMiner", "TripletMarginMiner"),
)
_ACTIVATIONS: Mapping[str, finetune_pb2.Activation.ValueType] = {
    "ifbetter": finetune_pb2.ACTIVATION_IF_BETTER,
    "always": finetune_pb2.ACTIVATION_ALWAYS,
    "never": finetune_pb2.ACTIVATION_NEVER,
}
_SCHEDULERS: Mapping[str, finetune_pb2.Scheduler.ValueType] = {
    "cosine": finetune_pb2.SCHEDULER_COSINE,
    "linear": finetune_pb2.SCHEDULER_LINEAR,
    "constant": finetune_pb2.SCHEDULER_CONSTANT,
    "constantwithwarmup": finetune_pb2.SCHEDULER_CONSTANT,
    "cosinewithrestarts": finetune_pb2.SCHEDULER_COSINE_WITH_RESTARTS,
    "polynomial": finetune_pb2.SCHEDULER_POLYNOMIAL,
}
_METHODS: Mapping[str, finetune_pb2.Method.ValueType] = {
    "auto": finetune_pb2.METHOD_AUTO,
    "full": finetune_pb2.METHOD_FULL,
    "lora": finetune_pb2.METHOD_LORA,
    "projection": finetune_pb2.METHOD_PROJECTION,
    "lit": finetune_pb2.METHOD_LIT,
}
_POSITIVES: Mapping[str, finetune_pb2.Positives.ValueType] = {
    "share": finetune_pb2.POSITIVES_SHARE,
    "mask": finetune_pb2.POSITIVES_MASK,
    "off": finetune_pb2.POSITIVES_OFF,
}
_OPTIMIZERS: Mapping[str, finetune_pb2.Optimizer.ValueType] = {
    "adamw": finetune_pb2.OPTIMIZER_ADAMW,
    "adam": finetune_pb2.OPTIMIZER_ADAM,
    "sgd": finetune_pb2.OPTIMIZER_SGD,
}
_PRECISIONS: Mapping[str, finetune_pb2.Precision.ValueType] = {
    "auto": finetune_pb2.PRECISION_UNSPECIFIED,
    "fp32": finetune_pb2.PRECISION_FP32,
    "bf16": finetune_pb2.PRECISION_BF16,
}
_ISOLATIONS: Mapping[str, finetune_pb2.Isolation.ValueType] = {
    "inprocess": finetune_pb2.ISOLATION_IN_PROCESS,
    "process": finetune_pb2.ISOLATION_PROCESS,
}
_COMPATS: Mapping[str, finetune_pb2.MetricCompat.ValueType] = {
    "standard": finetune_pb2.METRIC_COMPAT_UNSPECIFIED,
    "finetuner": finetune_pb2.METRIC_COMPAT_FINETUNER,
    "clipbenchmark": finetune_pb2.METRIC_COMPAT_CLIP_BENCHMARK,
}
_MODES: Mapping[str, finetune_pb2.EarlyStopping.Mode.ValueType] = {
    "auto": finetune_pb2.EarlyStopping.MODE_UNSPECIFIED,
    "min": finetune_pb2.EarlyStopping.MODE_MIN,
    "max": finetune_pb2.EarlyStopping.MODE_MAX,
}


def loss_of(name: str) -> tuple[finetune_pb2.Loss.ValueType, str]:
    """The loss behind a name or alias, such as "CLIPLoss", and the class of a metric loss."""
    exact = {_plain(known): known for known in METRIC_LOSSES}.get(_plain(name))
    if exact is not None:
        return finetune_pb2.LOSS_METRIC, exact
    found = _LOSSES.get(_plain(name))
    if found is None:
        known = ", ".join((*_LOSSES, *METRIC_LOSSES))
        raise InvalidArgument.field("loss", f"{name!r} is none of {known}")
    return found, ""


def miner_of(name: str) -> str:
    """The class of a miner; empty for none."""
    if not name:
        return ""
    return _lookup("miner", name, {_plain(known): known for known in MINERS})


def compat_of(name: str) -> finetune_pb2.MetricCompat.ValueType:
    """standard, finetuner or clip_benchmark."""
    return _lookup("compat", name, _COMPATS)


def activation_of(name: str) -> finetune_pb2.Activation.ValueType:
    """if_better, always or never."""
    return _lookup("activation", name, _ACTIVATIONS)


def scheduler_of(name: str) -> finetune_pb2.Scheduler.ValueType:
    """cosine, linear, constant, cosine_with_restarts or polynomial."""
    return _lookup("scheduler", name, _SCHEDULERS)


def method_of(name: str) -> finetune_pb2.Method.ValueType:
    """auto, full, lora, projection or lit."""
    return _lookup("method", name, _METHODS)


def positives_of(name: str) -> finetune_pb2.Positives.ValueType:
    """share, mask or off."""
    return _lookup("positives", name, _POSITIVES)


def optimizer_of(name: str) -> finetune_pb2.Optimizer.ValueType:
    """adamw, adam or sgd."""
    return _lookup("optimizer", name, _OPTIMIZERS)


def precision_of(name: str) -> finetune_pb2.Precision.ValueType:
    """auto, fp32 or bf16."""
    return _lookup("precision", name, _PRECISIONS)


def isolation_of(name: str) -> finetune_pb2.Isolation.ValueType:
    """in_process or process."""
    return _lookup("isolation", name, _ISOLATIONS)


def mode_of(name: str) -> finetune_pb2.EarlyStopping.Mode.ValueType:
    """auto, min or max."""
    return _lookup("early_stopping.mode", name, _MODES)


def _plain(name: str) -> str:
    return str(name).lower().replace("_", "").replace("-", "")


def _lookup(field: str, name: str, known: Mapping[str, T]) -> T:
    found = known.get(_plain(name))
    if found is None:
        raise InvalidArgument.field(field, f"{name!r} is none of {', '.join(known)}")
    return found
