"""What fine-tunes and evaluations are told, as the job stores it: JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from hotclip_server.training.config import TrainConfig
from hotclip_server.training.metrics import DEFAULT_K, Compat
from hotclip_server.training.monitors import MONITOR
from hotclip_server.training.prompts import DEFAULT_PROMPT


class ActivationRule(StrEnum):
    """Whether a fine-tune activates what it made."""

    IF_BETTER = "IF_BETTER"
    ALWAYS = "ALWAYS"
    NEVER = "NEVER"


class Isolation(StrEnum):
    """Where a run's steps are computed."""

    IN_PROCESS = "IN_PROCESS"
    PROCESS = "PROCESS"


class Tracker(StrEnum):
    """What a run's metrics can be told to besides the server's own log."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """When a run no longer gets better; looked at after each epoch."""

    monitor: str = MONITOR
    """Name of a metric of the stage EPOCH."""
    patience: int = 2
    """Epochs without an improvement after which it ends."""
    min_delta: float = 0.0
    """Changes up to this are none."""
    higher: bool = True
    """Whether more of it is better."""


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
    query_dataset: str = ""
    """Queries of the retrieval metrics; none: what is held out."""
    monitor: str = MONITOR
    """Name of the metric of held-out data that says which weights are better."""
    activation: ActivationRule
    config: TrainConfig
    replay_dataset: str = ""
    """Old pairs that are trained on too, and never held out."""
    prompts: tuple[str, ...] = (DEFAULT_PROMPT,)
    """Texts of labelled images that have none: templates with "{label}"."""
    wise_ft: float | None = None
    """Share of the trained weights in what is stored, in [0, 1]; None: 1, without a sweep."""
    soup: int = 0
    """How many of the last epochs' weights may be averaged; 0 is off."""
    early_stopping: EarlyStopping | None = None
    """None: every epoch is run."""
    keep_checkpoints: int = 2
    """Besides the best one."""
    export_onnx: bool = False
    """Also make ONNX files of the result."""
    isolation: Isolation = Isolation.IN_PROCESS
    """Where the steps are computed."""
    device: str = ""
    """E.g. "cuda:1"; "" is the device that serves."""
    trackers: tuple[Tracker, ...] = ()
    """What else is told of the run."""
    k: int = DEFAULT_K
    """Length of the lists that are measured."""
    compat: Compat = "standard"
    """Whose definitions the metrics follow."""

    def to_json(self) -> dict[str, Any]:
        """`datasets` keeps the datasets from being deleted."""
        used = (
            *(self.train_dataset, self.eval_dataset, self.index_dataset),
            *(self.query_dataset, self.replay_dataset),
        )
        return {**asdict(self), "datasets": sorted({dataset for dataset in used if dataset})}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> FineTuneSpec:
        """What `to_json` made."""
        fields = {name: value for name, value in stored.items() if name != "datasets"}
        stopping = fields["early_stopping"]
        fields |= {
            "activation": ActivationRule(fields["activation"]),
            "prompts": tuple(fields["prompts"]),
            "early_stopping": None if stopping is None else EarlyStopping(**stopping),
            "isolation": Isolation(fields["isolation"]),
            "trackers": tuple(Tracker(name) for name in fields["trackers"]),
            "config": TrainConfig.from_json(fields["config"]),
        }
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """One evaluation. Datasets are ids; "" is none."""

    model: str
    version: str
    dataset: str
    index_dataset: str
    k: int
    """Length of the lists."""
    compat: Compat = "standard"
    """Whose definitions the metrics follow."""
    base_version: str = ""
    """With `alphas`: the version at 0."""
    alphas: tuple[float, ...] = ()
    """Shares of `version` in weights that are measured too, in [0, 1]."""
    prompts: tuple[str, ...] = (DEFAULT_PROMPT,)
    """Texts of labelled images that have none: templates with "{label}"."""

    def to_json(self) -> dict[str, Any]:
        """`datasets` keeps the datasets from being deleted."""
        used = {self.dataset, self.index_dataset} - {""}
        return {**asdict(self), "datasets": sorted(used)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> EvaluateSpec:
        """What `to_json` made."""
        fields = {name: value for name, value in stored.items() if name != "datasets"}
        lists = {name: tuple(fields[name]) for name in ("alphas", "prompts")}
        return cls(**{**fields, **lists})
