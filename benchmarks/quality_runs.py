"""Fine-tunes of builtin:mini and what came of them: one row a run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.quality_tasks import Task
from hotclip_server.encoding import builtin
from hotclip_server.training.clip import Clip, load_clip
from hotclip_server.training.config import AugmentConfig, LoraConfig, TrainConfig
from hotclip_server.training.evaluate import TEXT_TO_IMAGE, Evaluator
from hotclip_server.training.events import EpochEnd
from hotclip_server.training.pairs import PairSet
from hotclip_server.training.split import split_pairs
from hotclip_server.training.trainer import train
from hotclip_server.training.wise_ft import interpolate

WISE_FT = 0.5
_MINI = Path(builtin.__path__[0]) / "mini"
EPOCHS: Mapping[str, int] = {"german": 8, "black": 8, "few": 20}
"""As many as one run of two minutes on two cores has room for."""
RATES: Mapping[str, float] = {"german": 1.0, "black": 0.2, "few": 0.2}
"""Of the learning rates in CONFIGS: a new language is further away than a new style."""
_FULL = TrainConfig(method="full", batch_size=64, learning_rate=1e-3)
_LORA = LoraConfig(rank=2, targets=("q", "k", "v", "out", "mlp"))
METHODS: Mapping[str, TrainConfig] = {
    "full": _FULL,
    "lora": replace(_FULL, method="lora", learning_rate=1e-2, lora=_LORA),
    # As a request has it: what stays the same is encoded once.
    "lit": replace(_FULL, method="lit", augment=AugmentConfig(crop=(1.0, 1.0))),
}
ABLATIONS: Mapping[str, TrainConfig] = {
    "positives_off": replace(_FULL, positives="off"),
    "ema_off": replace(_FULL, ema=0.0),
    "augment_off": replace(_FULL, augment=AugmentConfig(crop=(1.0, 1.0))),
    "layer_decay_0.8": replace(_FULL, layer_decay=0.8),
}
"""The method "full" with one thing that is on left out, or one that is off put in."""
CONFIGS: Mapping[str, TrainConfig] = {**METHODS, **ABLATIONS}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one run reached. Text to image; `retained` on what the model was good at before."""

    task: str
    method: str
    """A key of CONFIGS, "base", or "wise_ft": half of "full"."""
    seed: int
    mrr: float
    hit10: float
    retained_mrr: float
    retained_hit10: float
    seconds: float
    """Of training and choosing; 0 where nothing was trained."""
    recipe: str
    """See `recipe_of`."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.method, self.seed


def config_of(task: str, method: str, seed: int = 0, epochs: int = 0) -> TrainConfig:
    """How a method is trained for a task; `epochs` 0: as many as stated."""
    config = CONFIGS[method]
    rate = config.rate * RATES[task]
    return replace(config, learning_rate=rate, seed=seed, epochs=epochs or EPOCHS[task])


def recipe_of(task: str, method: str, epochs: int = 0) -> str:
    """8 hex digits of what a row comes of: the weights to begin with, and how they are trained."""
    trained = {"wise_ft": "full"}.get(method, method)
    config = None if trained == "base" else asdict(config_of(task, trained, epochs=epochs))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update(_MINI.joinpath("open_clip_model.safetensors").read_bytes())
    return digest.hexdigest()[:8]


def methods_of(task: str) -> list[str]:
    """What is run for a task; several positives change something where texts come twice alone."""
    pointless = () if task == "german" else ("positives_off",)
    return ["base", *(method for method in CONFIGS if method not in pointless)]


def read_rows(path: Path) -> list[Row]:
    """What was written so far; a line that was cut off by a stop is dropped."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").split("\n")
    return [Row(**json.loads(line)) for line in lines[:-1]]


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Adds a line each, all of them or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(known)) for known in [*read_rows(path), *rows]]
    whole = path.with_suffix(".part")
    whole.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    whole.replace(path)


class Measured:
    """A task with its queries and those of what must be retained, decoded once for all runs."""

    def __init__(self, task: Task, epochs: int = 0) -> None:
        clip = mini()
        self.task, self.epochs = task, epochs
        self._asked = Evaluator(clip, task.queries, task.index)
        self._retained = Evaluator(clip, task.retained)

    def row(self, clip: Clip, method: str, seed: int, seconds: float = 0.0) -> Row:
        """What a model reaches as it is."""
        asked = self._asked.evaluate(clip).metrics
        retained = self._retained.evaluate(clip).metrics
        return Row(
            task=self.task.name,
            method=method,
            seed=seed,
            mrr=asked[f"{TEXT_TO_IMAGE}_reciprocal_rank"],
            hit10=asked[f"{TEXT_TO_IMAGE}_hit_at_10"],
            retained_mrr=retained[f"{TEXT_TO_IMAGE}_reciprocal_rank"],
            retained_hit10=retained[f"{TEXT_TO_IMAGE}_hit_at_10"],
            seconds=round(seconds, 1),
            recipe=recipe_of(self.task.name, method, self.epochs),
        )


def mini() -> Clip:
    """builtin:mini as it ships."""
    return load_clip(_MINI)


def rows_of(measured: Measured, method: str, seed: int) -> Iterator[Row]:
    """Trains and measures; "full" gives the row of WiSE-FT too."""
    clip, task = mini(), measured.task
    if method == "base":
        yield measured.row(clip, method, seed)
        return
    base = _copy(clip)
    began = time.monotonic()
    _train(clip, task.train, config_of(task.name, method, seed, measured.epochs))
    yield measured.row(clip, method, seed, time.monotonic() - began)
    if method == "full":
        interpolate(clip.model, base, _copy(clip), WISE_FT)
        yield measured.row(clip, "wise_ft", seed)


def _train(clip: Clip, data: PairSet, config: TrainConfig) -> None:
    """As a job does it: a tenth is held out and chooses the epoch whose weights are kept."""
    training, held_out = split_pairs(data, 0.1, config.seed)
    chooser = Evaluator(clip, held_out, image_locked=config.locks_image)
    best, weights = -1.0, _copy(clip)
    for event in train(clip, training, config):
        if isinstance(event, EpochEnd):
            score = chooser.evaluate(clip).score
            if score > best:
                best, weights = score, _copy(clip)
    with torch.no_grad():
        for name, value in clip.model.state_dict().items():
            value.copy_(weights[name])


def _copy(clip: Clip) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in clip.model.state_dict().items()}
