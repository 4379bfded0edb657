"""What a run has found so far: measurements, the best weights, and whether it still gets better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hotclip_server.jobs.specs import EarlyStopping
from hotclip_server.training.evaluate import Evaluation, Example


@dataclass(kw_only=True)
class Standing:
    """Goes into every checkpoint. Weights are names of `Checkpoints.save_weights`."""

    before: Evaluation | None = None
    """The base's."""
    best: Evaluation | None = None
    best_weights: str = ""
    last: list[tuple[str, float]] = field(default_factory=list)
    """Weights and scores of the last epochs, oldest first."""
    monitored: float | None = None
    """Best value of what early stopping looks at."""
    stale: int = 0
    """Epochs since then."""

    @property
    def used(self) -> set[str]:
        """Weights that it names."""
        return {name for name in (self.best_weights, *(name for name, _ in self.last)) if name}

    def looked(self, rule: EarlyStopping, value: float) -> bool:
        """Notes the value of an epoch; whether the run should end."""
        known = self.monitored
        gain = 0.0 if known is None else (value - known if rule.higher else known - value)
        if known is None or gain > rule.min_delta:
            self.monitored, self.stale = value, 0
        else:
            self.stale += 1
        return self.stale >= rule.patience

    def to_json(self) -> dict[str, Any]:
        """Numbers survive JSON exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Standing:
        """What `to_json` and JSON made."""
        return cls(
            before=evaluation_from_json(stored["before"]),
            best=evaluation_from_json(stored["best"]),
            best_weights=stored["best_weights"],
            last=[(name, score) for name, score in stored["last"]],
            monitored=stored["monitored"],
            stale=stored["stale"],
        )


def evaluation_from_json(stored: Mapping[str, Any] | None) -> Evaluation | None:
    """What `dataclasses.asdict` and JSON made of an evaluation, or of none."""
    if stored is None:
        return None
    examples = tuple(
        Example(query=e["query"], found=tuple(e["found"]), relevant=tuple(e["relevant"]))
        for e in stored["examples"]
    )
    return Evaluation(**{**stored, "examples": examples})
