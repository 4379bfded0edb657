"""What fine-tunes and evaluations are told, as the job stores it: JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from hotclip_server.training.config import AugmentConfig, TrainConfig


class ActivationRule(StrEnum):
    """Whether a fine-tune activates what it made."""

    IF_BETTER = "IF_BETTER"
    ALWAYS = "ALWAYS"
    NEVER = "NEVER"


@dataclass(frozen=True, kw_only=True)
class FineTuneSpec:
    """One fine-tune. Datasets are ids, all names are resolved; "" is none."""

    model: str
    base_version: str
    train_dataset: str
    eval_dataset: str
    index_dataset: str
    val_split: float
    """Share held out where `eval_dataset` is none."""
    activation: ActivationRule
    config: TrainConfig
    wise_ft: float | None = None
    """Share of the trained weights in what is stored, in [0, 1]; None: 1, without a sweep."""
    export_onnx: bool = False
    """Also make ONNX files of the result."""

    def to_json(self) -> dict[str, Any]:
        """`datasets` keeps the datasets from being deleted."""
        used = (self.train_dataset, self.eval_dataset, self.index_dataset)
        return {**asdict(self), "datasets": sorted({dataset for dataset in used if dataset})}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> FineTuneSpec:
        """What `to_json` made."""
        fields = {name: value for name, value in stored.items() if name != "datasets"}
        config = dict(fields.pop("config"))
        augment = dict(config.pop("augment"))
        augment["crop"] = tuple(augment["crop"])
        return cls(
            **{**fields, "activation": ActivationRule(fields["activation"])},
            config=TrainConfig(**config, augment=AugmentConfig(**augment)),
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """One evaluation. Datasets are ids; "" is none."""

    model: str
    version: str
    dataset: str
    index_dataset: str
    k: int
    base_version: str = ""
    """With `alphas`: the version at 0."""
    alphas: tuple[float, ...] = ()
    """Shares of `version` in weights that are measured too, in [0, 1]."""

    def to_json(self) -> dict[str, Any]:
        """`datasets` keeps the datasets from being deleted."""
        used = {self.dataset, self.index_dataset} - {""}
        return {**asdict(self), "datasets": sorted(used)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> EvaluateSpec:
        """What `to_json` made."""
        fields = {name: value for name, value in stored.items() if name != "datasets"}
        return cls(**{**fields, "alphas": tuple(fields.get("alphas", ()))})
