"""Where a run stands, and all that it needs to go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor


@dataclass(kw_only=True)
class Progress:
    """Everything about a run that is not a tensor and not in its configuration.

    Order, captions, augmentation and dropout are functions of the seed and of where the run is:
    there is no state of a random generator to keep.
    """

    step: int = 0
    """Steps done."""
    epochs_ended: int = 0
    """Epochs whose end was told."""
    loss_sum: float = 0.0
    losses: int = 0
    """Of the epoch so far, in fp64."""
    skipped: int = 0
    in_a_row: int = 0
    """Steps that were not finite: of the run, and just now."""
    rate_factor: float = 1.0
    """Halved at each rollback."""
    diverged_at: int = 0
    """Furthest step at which three in a row were not finite."""
    chunk_size: int = 0
    averaged: int = 0
    """Steps in the moving average."""
    mined_epoch: int = -1
    """At whose begin the negatives in use were found; -1: none are."""

    def to_json(self) -> dict[str, Any]:
        """Floats survive JSON exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Progress:
        """What `to_json` made."""
        return cls(**stored)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a run after a whole step. The tensors of a fresh one are the run's own: they
    change with the next step."""

    progress: Progress
    weights: Mapping[str, Tensor]
    """As `Tuning.state` names them."""
    average: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    """By "<parameter>/<name in the optimizer's state>"."""
    mined: Mapping[str, Tensor] = field(default_factory=dict)
    """As `Miner.state` has them."""
