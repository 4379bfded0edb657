"""What a training run is told: frozen, validated when made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from hotclip_server.training.errors import FieldViolation, InvalidTrainConfig

Scheduler = Literal["cosine", "linear", "constant"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of a training image; each 0 is off. Images never flip: "left" stays left."""

    crop: tuple[float, float] = (0.9, 1.0)
    """Range of the share of the side that is kept; above 1 the image shrinks, its border grows."""
    shift: float = 0.0
    """Largest move in each direction, as a share of the side."""
    rotate: float = 0.0
    """Largest rotation in degrees."""
    brightness: float = 0.0
    """Largest relative change of brightness and of contrast."""
    grey: float = 0.0
    """Probability of losing colour, wholly or in part."""
    hue: float = 0.0
    """Probability of a rotation of the hue by any angle."""
    outline: float = 0.0
    """Probability of dark outlines along edges, thin or thick."""
    line_art: float = 0.0
    """Probability of keeping only the edges, as a drawing on white."""
    blur: float = 0.0
    """Probability of a slight blur."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Raises InvalidTrainConfig naming every bad field."""

    epochs: int = 5
    """Passes over the images; ignored where `max_steps` is given."""
    max_steps: int | None = None
    """Optimizer steps in total, instead of `epochs`."""
    batch_size: int = 64
    """Most images of one step."""
    learning_rate: float = 1e-5
    """Peak learning rate, after the warm-up."""
    warmup: float = 0.05
    """Share of all steps in which the learning rate rises from 0."""
    scheduler: Scheduler = "cosine"
    """Course of the learning rate after the warm-up."""
    weight_decay: float = 0.05
    """Decoupled decay; none on one-dimensional parameters and the logit scale."""
    beta1: float = 0.9
    """AdamW, first moment."""
    beta2: float = 0.98
    """AdamW, second moment."""
    clip_norm: float = 1.0
    """Largest norm of the gradient over all parameters."""
    lock_image: bool = False
    """Leave the vision tower exactly as it is: stored image vectors stay valid."""
    lock_text: bool = False
    """Leave the text tower exactly as it is."""
    ema: float = 0.1
    """Horizon of the moving average of the weights as a share of all steps; 0 is off."""
    train_batch_norm: bool = False
    """Learn BatchNorm statistics (training from scratch); else they stay as they are."""
    precision: Precision = "fp32"
    """Arithmetic of the towers; the loss and the weights are always fp32."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of the training images."""
    seed: int = 0
    """Of the order, the captions drawn, the augmentation and dropout."""

    def __post_init__(self) -> None:
        violations = tuple(_violations(self))
        if violations:
            raise InvalidTrainConfig(violations)


def _violations(config: TrainConfig) -> list[FieldViolation]:
    bad: list[FieldViolation] = []

    def check(ok: bool, path: str, reason: str) -> None:
        if not ok:
            bad.append(FieldViolation(path, reason))

    def in_range(path: str, value: float, low: float, high: float) -> None:
        ok = math.isfinite(value) and low <= value <= high
        check(ok, path, f"must be between {low:g} and {high:g}, got {value!r}")

    in_range("epochs", config.epochs, 1, 100_000)
    if config.max_steps is not None:
        in_range("max_steps", config.max_steps, 1, 100_000_000)
    in_range("batch_size", config.batch_size, 2, 1_000_000)
    positive = math.isfinite(config.learning_rate) and 0 < config.learning_rate <= 1
    check(positive, "learning_rate", f"must be above 0 and at most 1, got {config.learning_rate!r}")
    in_range("warmup", config.warmup, 0, 1)
    for path, value, allowed in (
        ("scheduler", config.scheduler, get_args(Scheduler)),
        ("precision", config.precision, get_args(Precision)),
    ):
        check(value in allowed, path, f"must be one of {', '.join(allowed)}, got {value!r}")
    in_range("weight_decay", config.weight_decay, 0, 10)
    in_range("beta1", config.beta1, 0, 0.99999)
    in_range("beta2", config.beta2, 0, 0.999999)
    check(
        math.isfinite(config.clip_norm) and config.clip_norm > 0,
        "clip_norm",
        f"must be above 0, got {config.clip_norm!r}",
    )
    both = config.lock_image and config.lock_text
    check(not both, "lock_text", "lock_image is set too, so nothing would be trained")
    in_range("ema", config.ema, 0, 1)
    in_range("seed", config.seed, 0, 2**63 - 1)
    low, high = config.augment.crop
    check(0.1 <= low <= high <= 4, "augment.crop", "must be ordered and between 0.1 and 4")
    in_range("augment.shift", config.augment.shift, 0, 0.5)
    in_range("augment.rotate", config.augment.rotate, 0, 180)
    in_range("augment.brightness", config.augment.brightness, 0, 1)
    for name in ("grey", "hue", "outline", "line_art", "blur"):
        in_range(f"augment.{name}", getattr(config.augment, name), 0, 1)
    return bad
