"""Where a version comes from: the job that made it, on what data, with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

JOB_SOURCE = "job:"
"""What the source of a version that a job made starts with."""
_DATASETS = {
    "train": "train_dataset",
    "replay": "replay_dataset",
    "eval": "eval_dataset",
    "query": "query_dataset",
    "index": "index_dataset",
}
_NAMES = frozenset({"model", "base_version", "datasets", *_DATASETS.values()})


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What the job that made a version was told; it stays when the job is deleted."""

    job: str
    """Id."""
    datasets: Mapping[str, str]
    """Ids, which are content addresses, by use: "train", "replay", "eval", "query", "index"."""
    config: Mapping[str, Any]
    """All settings of the job, as JSON."""

    @classmethod
    def of_job(cls, job: str, spec: Mapping[str, Any]) -> Self:
        """Of a job's specification."""
        return cls(
            job=job,
            datasets={use: spec[field] for use, field in _DATASETS.items() if spec.get(field)},
            config={name: value for name, value in spec.items() if name not in _NAMES},
        )

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """What `to_json` made."""
        return cls(**stored)
