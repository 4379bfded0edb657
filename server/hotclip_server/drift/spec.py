"""What a comparison of versions is told, as the job stores it: JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

DEFAULT_SAMPLE, SAMPLES = 1000, (16, 10_000)
DEFAULT_K, MOST_K = 10, 100
MOST_TEXTS = 1024


@dataclass(frozen=True, kw_only=True)
class DriftSpec:
    """One comparison; all names are resolved, "" is none."""

    model: str
    version: str
    base_version: str
    collections: tuple[str, ...]
    """Empty: all of the model, when the job runs."""
    dataset: str
    """Id."""
    texts: tuple[str, ...] = ()
    sample: int = DEFAULT_SAMPLE
    """Points of a collection, pairs of the dataset, recorded queries."""
    k: int = DEFAULT_K
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """`datasets` keeps the dataset from being deleted."""
        return {**asdict(self), "datasets": [self.dataset] if self.dataset else []}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> DriftSpec:
        """What `to_json` made."""
        fields = {name: value for name, value in stored.items() if name != "datasets"}
        lists = {name: tuple(fields[name]) for name in ("collections", "texts")}
        return cls(**{**fields, **lists})
