"""Metrics of an epoch that may decide which weights are better, or when a run ends. No torch."""

from __future__ import annotations

import numpy as np

from hotclip_server.training.metrics import retrieval_metrics

MONITOR = "monitor"
"""The mean reciprocal rank of both directions."""
EPOCH_LOSS, VALIDATION_LOSS = "epoch_loss", "validation_loss"
DIRECTIONS = ("clip-text-to-clip-vision", "clip-vision-to-clip-text")
_LOSSES = (EPOCH_LOSS, VALIDATION_LOSS)
_RANKS = ("mean_rank", "median_rank")
_RETRIEVAL = retrieval_metrics([(np.ones(1), np.ones(1, dtype=np.bool_))]).keys() - {"queries"}


def is_monitor(name: str) -> bool:
    """Whether events of the stage EPOCH have a metric of this name."""
    direction, _, metric = name.partition("_")
    return name in (MONITOR, *_LOSSES) or (direction in DIRECTIONS and metric in _RETRIEVAL)


def higher_is_better(name: str) -> bool:
    """Whether more of a metric is better."""
    return name not in _LOSSES and not name.endswith(_RANKS)


def signed(name: str, value: float) -> float:
    """The value of a metric so that higher is better; of what this gives, the value again."""
    return value if higher_is_better(name) else -value
