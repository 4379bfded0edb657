"""What a training run tells, in order.

After every event but EpochEnd the run's state is that of the last whole step, so that a snapshot
may be taken; and after every event at all the run may be ended.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Started:
    """Once, before the first step."""

    steps: int
    epochs: int
    images: int
    pairs: int
    done: int = 0
    """Steps that an earlier attempt has done."""
    chunk_size: int = 0
    """Rows of a tower that run together."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A part of a step is done: a good moment to let others use the device."""

    step: int
    """The step that is under way, from 1."""


@dataclass(frozen=True, kw_only=True)
class NegativesMined:
    """Hard negatives were found by the weights of this moment."""

    epoch: int
    """That begins, from 1."""
    pairs: int
    """That have any."""


@dataclass(frozen=True, kw_only=True)
class ChunkHalved:
    """The device's memory was full: the step is done again in smaller chunks, to the same end."""

    step: int
    chunk_size: int
    """From now on."""


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
    """exp of the learnt log-scale that the loss was computed with: the inverse temperature."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    samples_per_second: float
    data_wait_s: float
    """Of this step, spent waiting for images to be decoded."""
    chunk_size: int
    skipped: int
    """Steps of the run so far that were not finite."""


@dataclass(frozen=True, kw_only=True)
class SkippedStep:
    """A step whose loss or gradient was not finite: no weight changed."""

    step: int
    loss: float
    grad_norm: float
    in_a_row: int
    samples: tuple[str, ...]
    """Keys of images whose own features, or whose text's, were not finite; else of the batch."""


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """Three steps in a row were not finite: the run goes on from an earlier state, slower."""

    step: int
    """Steps that are done in the state it went back to."""
    from_step: int
    rate_factor: float
    """What the configured learning rate is multiplied by from now on."""


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


TrainEvent = (
    Started | Chunk | NegativesMined | ChunkHalved | Step | SkippedStep | RolledBack | EpochEnd
)
