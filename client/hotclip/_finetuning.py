"""Fine-tune and evaluate requests from keywords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, TypeVar

from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import finetune_pb2

ActivationName: TypeAlias = Literal["if_better", "always", "never"]
SchedulerName: TypeAlias = Literal["cosine", "linear", "constant"]

T = TypeVar("T")

# Names of other libraries for the same loss are understood; case, "-" and "_" don't count.
_LOSSES: Mapping[str, finetune_pb2.Loss.ValueType] = {
    "infonce": finetune_pb2.LOSS_INFO_NCE,
    "clip": finetune_pb2.LOSS_INFO_NCE,
    "cliploss": finetune_pb2.LOSS_INFO_NCE,
    "contrastive": finetune_pb2.LOSS_INFO_NCE,
    "contrastiveloss": finetune_pb2.LOSS_INFO_NCE,
    "ntxent": finetune_pb2.LOSS_INFO_NCE,
    "ntxentloss": finetune_pb2.LOSS_INFO_NCE,
    "multiplenegativesrankingloss": finetune_pb2.LOSS_INFO_NCE,
}
_ACTIVATIONS: Mapping[str, finetune_pb2.Activation.ValueType] = {
    "ifbetter": finetune_pb2.ACTIVATION_IF_BETTER,
    "always": finetune_pb2.ACTIVATION_ALWAYS,
    "never": finetune_pb2.ACTIVATION_NEVER,
}
_SCHEDULERS: Mapping[str, finetune_pb2.Scheduler.ValueType] = {
    "cosine": finetune_pb2.SCHEDULER_COSINE,
    "linear": finetune_pb2.SCHEDULER_LINEAR,
    "constant": finetune_pb2.SCHEDULER_CONSTANT,
}


def loss_of(name: str) -> finetune_pb2.Loss.ValueType:
    """The loss behind a name or alias, such as "CLIPLoss"."""
    return _lookup("loss", name, _LOSSES)


def activation_of(name: str) -> finetune_pb2.Activation.ValueType:
    """if_better, always or never."""
    return _lookup("activation", name, _ACTIVATIONS)


def scheduler_of(name: str) -> finetune_pb2.Scheduler.ValueType:
    """cosine, linear or constant."""
    return _lookup("scheduler", name, _SCHEDULERS)


def _lookup(field: str, name: str, known: Mapping[str, T]) -> T:
    found = known.get(name.lower().replace("_", "").replace("-", ""))
    if found is None:
        raise InvalidArgument.field(field, f"{name!r} is none of {', '.join(known)}")
    return found
