"""Enums of FineTuneRequest, and what the trainer calls their values."""

from __future__ import annotations

from collections.abc import Mapping

from hotclip_proto.v1 import finetune_pb2 as pb

CHOICES: Mapping[str, Mapping[int, str]] = {
    "loss": {
        pb.LOSS_UNSPECIFIED: "auto",
        pb.LOSS_INFO_NCE: "info_nce",
        pb.LOSS_SIGLIP: "siglip",
        pb.LOSS_METRIC: "metric",
    },
    "positives": {
        pb.POSITIVES_UNSPECIFIED: "off",
        pb.POSITIVES_SHARE: "share",
        pb.POSITIVES_MASK: "mask",
        pb.POSITIVES_OFF: "off",
    },
    "method": {
        pb.METHOD_UNSPECIFIED: "auto",
        pb.METHOD_AUTO: "auto",
        pb.METHOD_FULL: "full",
        pb.METHOD_LORA: "lora",
        pb.METHOD_PROJECTION: "projection",
        pb.METHOD_LIT: "lit",
    },
    "scheduler": {
        pb.SCHEDULER_UNSPECIFIED: "cosine",
        pb.SCHEDULER_COSINE: "cosine",
        pb.SCHEDULER_LINEAR: "linear",
        pb.SCHEDULER_CONSTANT: "constant",
        pb.SCHEDULER_COSINE_WITH_RESTARTS: "cosine_with_restarts",
        pb.SCHEDULER_POLYNOMIAL: "polynomial",
    },
    "optimizer": {
        pb.OPTIMIZER_UNSPECIFIED: "adamw",
        pb.OPTIMIZER_ADAMW: "adamw",
        pb.OPTIMIZER_ADAM: "adam",
        pb.OPTIMIZER_SGD: "sgd",
    },
    "precision": {
        pb.PRECISION_UNSPECIFIED: "auto",
        pb.PRECISION_FP32: "fp32",
        pb.PRECISION_BF16: "bf16",
    },
    "activation": {
        pb.ACTIVATION_UNSPECIFIED: "IF_BETTER",
        pb.ACTIVATION_IF_BETTER: "IF_BETTER",
        pb.ACTIVATION_ALWAYS: "ALWAYS",
        pb.ACTIVATION_NEVER: "NEVER",
    },
    "compat": {
        pb.METRIC_COMPAT_UNSPECIFIED: "standard",
        pb.METRIC_COMPAT_FINETUNER: "finetuner",
        pb.METRIC_COMPAT_CLIP_BENCHMARK: "clip_benchmark",
    },
    "isolation": {
        pb.ISOLATION_UNSPECIFIED: "IN_PROCESS",
        pb.ISOLATION_IN_PROCESS: "IN_PROCESS",
        pb.ISOLATION_PROCESS: "PROCESS",
    },
}
"""By field."""


def choice_of(field: str, value: int) -> str:
    """A known value of an enum as the trainer calls it."""
    return CHOICES[field][value]
