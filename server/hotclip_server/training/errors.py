"""What can go wrong in training, as the caller should hear it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldViolation:
    """One bad value: the path of the field and why it can't be used."""

    field: str
    reason: str


class InvalidTrainConfig(ValueError):
    """The configuration has unknown, contradictory or out-of-range values."""

    def __init__(self, violations: tuple[FieldViolation, ...]) -> None:
        self.violations = violations
        super().__init__("; ".join(f"{v.field}: {v.reason}" for v in violations))


class InvalidPairs(ValueError):
    """The pairs can't be trained on or evaluated: too few, an unreadable image, a leak."""


class TrainingDiverged(RuntimeError):
    """The loss or the gradients stayed NaN or infinite; the weights are the last finite ones."""
