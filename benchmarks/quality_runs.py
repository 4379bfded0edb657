"""Fine-tunes of builtin:mini and what came of them: one row for each model that is measured."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from benchmarks.quality_recipes import (
    HALF,
    METHODS,
    WISE_FT,
    Recipe,
    last_of,
    recipes_of,
    trained_as,
)
from benchmarks.quality_tasks import Drawings, Task
from hotclip_server.encoding import builtin
from hotclip_server.training.clip import Clip, load_clip
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.evaluate import TEXT_TO_IMAGE, Evaluator
from hotclip_server.training.events import EpochEnd
from hotclip_server.training.pairs import PairSet
from hotclip_server.training.replay import with_replay
from hotclip_server.training.trainer import train
from hotclip_server.training.wise_ft import interpolate

BASE = "base"
_MINI = Path(builtin.__path__[0]) / "mini"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one model reached. Text to image; `retained` on what the base was good at."""

    task: str
    method: str
    """The name of a recipe, or that with HALF after it, or BASE."""
    seed: int
    mrr: float
    hit10: float
    retained_mrr: float
    retained_hit10: float
    seconds: float
    """Of making and measuring it."""
    recipe: str
    """See `fingerprint`."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.method, self.seed


def fingerprint(task: Task, method: str, epochs: int = 0) -> str:
    """8 hex digits of what a row comes of: the weights to begin with, the pairs and the recipe.

    `epochs` 0: as many as the recipe states.
    """
    name = trained_as(method)
    digest = hashlib.sha256(_weights_digest())
    if name != BASE:
        recipe = _told(recipes_of(task.name)[name], 0, epochs)
        said = asdict(recipe)
        for choice in ("last", "seen"):
            if not said[choice]:
                del said[choice]  # rows from before there was a choice are still of their recipe
        digest.update(json.dumps(said, sort_keys=True).encode())
        digest.update(_digest(_training(task, recipe)))
    for part in (task.chosen_by, task.queries, task.index, task.old, task.old_index):
        digest.update(_digest(part))
    return digest.hexdigest()[:8]


def _digest(data: PairSet) -> bytes:
    told = repr([(pair.image_key, pair.text) for pair in data.pairs])
    return hashlib.sha256(told.encode()).digest()


@functools.cache
def _weights_digest() -> bytes:
    return hashlib.sha256(_MINI.joinpath("open_clip_model.safetensors").read_bytes()).digest()


def _told(recipe: Recipe, seed: int, epochs: int) -> Recipe:
    config = replace(recipe.config, seed=seed, epochs=epochs or recipe.config.epochs)
    return replace(recipe, config=config)


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
    """A task with what it is measured by, decoded once for all runs of it.

    What locks the vision tower is measured with the image vectors of the base.
    """

    def __init__(self, task: Task, epochs: int = 0) -> None:
        self.task, self.epochs = task, epochs
        self._base = load_mini()

    def rows(self, name: str, seed: int) -> Iterator[Row]:
        """Makes a model by the name of its recipe and measures it; BASE is the base itself."""
        began = time.monotonic()
        clip, locked = load_mini(), True
        if name == BASE:
            yield self._row(clip, name, seed, locked, began)
            return
        recipe = _told(recipes_of(self.task.name)[name], seed, self.epochs)
        locked = recipe.config.locks_image
        base = _copy(self._base)
        best, last = _train(clip, self.task, recipe)
        wanted = [(name, best, recipe.wise_ft)]
        if name in METHODS[self.task.name]:
            wanted.append((name + HALF, best, WISE_FT))
        wanted += [(other, last, recipe.wise_ft) for other in last_of(self.task.name, name)]
        for row, tuned, share in wanted:
            interpolate(clip.model, base, tuned, share)
            yield self._row(clip, row, seed, locked, began)
            began = time.monotonic()

    def _row(self, clip: Clip, method: str, seed: int, locked: bool, began: float) -> Row:
        asked, retained = (
            evaluator.evaluate(clip).metrics
            for evaluator in (self._of_locked if locked else self._of_any)
        )
        return Row(
            task=self.task.name,
            method=method,
            seed=seed,
            mrr=asked[f"{TEXT_TO_IMAGE}_reciprocal_rank"],
            hit10=asked[f"{TEXT_TO_IMAGE}_hit_at_10"],
            retained_mrr=retained[f"{TEXT_TO_IMAGE}_reciprocal_rank"],
            retained_hit10=retained[f"{TEXT_TO_IMAGE}_hit_at_10"],
            seconds=round(time.monotonic() - began, 1),
            recipe=fingerprint(self.task, method, self.epochs),
        )

    @functools.cached_property
    def _of_locked(self) -> tuple[Evaluator, Evaluator]:
        return self._evaluators(image_locked=True)

    @functools.cached_property
    def _of_any(self) -> tuple[Evaluator, Evaluator]:
        return self._evaluators(image_locked=False)

    def _evaluators(self, *, image_locked: bool) -> tuple[Evaluator, Evaluator]:
        task, base = self.task, self._base
        return (
            Evaluator(base, task.queries, task.index, image_locked=image_locked),
            Evaluator(base, task.retained, task.old_index, image_locked=image_locked),
        )


def load_mini() -> Clip:
    """builtin:mini as it ships."""
    return load_clip(_MINI)


def _train(clip: Clip, task: Task, recipe: Recipe) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the epoch that is best at `chosen_by`, as a job keeps them, and of the last."""
    best, weights = -1.0, _copy(clip)
    for score in _epochs(clip, _training(task, recipe), task.chosen_by, recipe.config):
        if score > best:
            best, weights = score, _copy(clip)
    return weights, _copy(clip)


def _training(task: Task, recipe: Recipe) -> PairSet:
    if recipe.seen:
        return Drawings([*task.train.pairs, *task.queries.pairs])
    if not recipe.replay:
        return task.train
    data, _ = with_replay(task.train, task.old, task.chosen_by)
    return data


def _epochs(clip: Clip, data: PairSet, held_out: PairSet, config: TrainConfig) -> Iterator[float]:
    """The score after each epoch, while the model holds its weights."""
    chooser = Evaluator(clip, held_out, image_locked=config.locks_image)
    for event in train(clip, data, config):
        if isinstance(event, EpochEnd):
            yield chooser.evaluate(clip).score


def _copy(clip: Clip) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in clip.model.state_dict().items()}
