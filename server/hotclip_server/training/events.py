"""What a training run tells, in order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Started:
    """Once, before the first step."""

    steps: int
    epochs: int
    images: int
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """After each optimizer step."""

    step: int
    """Steps done, from 1 to `steps`."""
    steps: int
    epoch: int
    """Epoch of this step, from 1 to `epochs`."""
    epochs: int
    loss: float
    learning_rate: float
    logit_scale: float
    """exp of the learnt log-scale: the inverse temperature."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    samples_per_second: float
    data_wait_s: float
    """Of this step, spent waiting for images to be decoded."""


@dataclass(frozen=True, kw_only=True)
class SkippedStep:
    """A step whose loss or gradient was not finite: no weight changed."""

    step: int
    loss: float
    grad_norm: float
    in_a_row: int


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """After the last step of an epoch.

    While this event is handled the model holds the weights that would be kept if training
    ended here (the moving average, if there is one) and is in evaluation mode.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    mean_loss: float


TrainEvent = Started | Step | SkippedStep | EpochEnd
