"""What a tracker is told, and how its numbers are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Outcome = Literal["SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED"]

PREFIXES = {"STEP": "train", "BEFORE": "epoch", "EPOCH": "epoch", "AFTER": "best", "ALPHA": "alpha"}
"""Of the names of metrics, by the stage of the event: "train/loss", "epoch/monitor" …"""
ALPHA_STEPS = 100
"""Trackers have whole steps: alpha 0.25 is step 25 of "alpha/…"."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The job, as a tracker shows it."""

    id: str
    name: str
    model: str
    description: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """What was asked for, nested names joined by dots."""

    @property
    def folder_name(self) -> str:
        """For a folder of the job's own: names are free again once a job is deleted."""
        return self.id if self.name == self.id else f"{self.name}-{self.id}"


@dataclass(frozen=True, kw_only=True)
class TrackerSettings:
    """Where trackers write."""

    folder: Path
    """Made if it is not there; each tracker has a folder or a file in it."""
    wandb_online: bool = False
    """Whether W&B sends what it gets to its server."""
    mlflow_uri: str = ""
    """MLflow's tracking URI; empty: a SQLite file in `folder`."""


class Tracker(Protocol):
    """One run of one tracker. Methods may block and may raise anything; they are called on a
    thread that nothing waits for."""

    def metrics(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Numbers by their whole name; `time` is in seconds since 1970."""

    def rewind(self, step: int) -> bool:
        """The job goes on after a step: forgets what it was told of later ones, which come again.
        False: it can't, and is told them twice; which of them it was told is known to nobody, for
        it may have lagged behind when the process died."""

    def close(self, outcome: Outcome) -> None:
        """The job has ended; a job that was interrupted may go on in another process."""


def named(stage: str, values: Mapping[str, float]) -> dict[str, float]:
    """Values under the names that trackers show."""
    prefix = PREFIXES.get(stage, stage.lower())
    return {f"{prefix}/{name}": value for name, value in values.items()}


def flattened(spec: Mapping[str, Any]) -> dict[str, str]:
    """A job's specification as names and texts."""
    found: dict[str, str] = {}

    def flatten(prefix: str, value: object) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                flatten(f"{prefix}.{name}" if prefix else str(name), inner)
        else:
            found[prefix] = "" if value is None else str(value)

    flatten("", spec)
    return found
