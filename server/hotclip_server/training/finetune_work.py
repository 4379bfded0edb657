"""The part of a fine-tune that computes: from stored weights and pairs to a stored version.

It knows nothing of what serves, so that it runs on a thread of the server or in a process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from hotclip_server.jobs.context import JobContext
from hotclip_server.jobs.specs import FineTuneSpec
from hotclip_server.shared_flag import SharedFlag
from hotclip_server.storage.atomic import require_free_space
from hotclip_server.training.candidates import CANDIDATES, Candidates
from hotclip_server.training.checkpoints import Checkpoints
from hotclip_server.training.config import AUTO_LORA_BELOW, Method
from hotclip_server.training.evaluate import Evaluation
from hotclip_server.training.finetune_run import CHECKPOINT_EVERY_S, Run
from hotclip_server.training.flat import HashSet
from hotclip_server.training.gradients import Drawing
from hotclip_server.training.jobs import (
    Datasets,
    Versions,
    evaluator_of,
    load_clip,
    measure,
    metrics_of,
    opened,
    openmp_in_background,
    own_stream,
    training_errors,
)
from hotclip_server.training.pairs import PairSet
from hotclip_server.training.prompts import count_pairs, with_texts
from hotclip_server.training.replay import with_replay
from hotclip_server.training.split import split_pairs

DISK_FACTORS: Mapping[Method, float] = {"full": 4, "lit": 3, "lora": 0.5, "projection": 0.5}
"""Bytes of a state, a byte of the weights file: of what is trained the weights, their average and
two moments of AdamW."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What came of a run."""

    version: str
    """Id of the stored version."""
    metrics: dict[str, float] = field(default_factory=dict)
    """On held-out data; empty without."""
    score: float | None = None
    """What decides which weights are better; None without held-out data."""


class Work(Protocol):
    """A fine-tune under way. Every method blocks, on the thread of the job.

    Raises (all methods):
        HotclipError: the job fails with it.
        Cancelled, Interrupted: as `JobContext.check_cancelled`.
    """

    def make(self) -> Made:
        """Trains and stores a version."""

    def score_of(self, version: str) -> float:
        """What another version reaches on the same held-out data."""


@dataclass(frozen=True, kw_only=True)
class Roots:
    """Folders that a process of its own reads and writes."""

    versions: Path
    datasets: Path


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where fine-tunes compute.

    versions, datasets: What they read, and where the result goes.
    folders: One below it for each run's states, by the job's id.
    device: E.g. "cpu" or "cuda:0".
    threads: CPU threads of a step; 0: torch's own choice.
    min_free_disk_bytes: What stays free on the disk.
    every_s: Least time between two states.
    drawing: See `Trainer`.
    cooperates: Whether its workers give way to others; a process does that as a whole.
    roots: What `versions` and `datasets` keep their files in; None: no process can be used.
    waiting: Whether anybody waits for the device, for a process to see.
    """

    versions: Versions
    datasets: Datasets
    folders: Path
    device: str = "cpu"
    threads: int = 0
    min_free_disk_bytes: int = 0
    every_s: float = CHECKPOINT_EVERY_S
    drawing: Drawing = nullcontext
    cooperates: bool = True
    roots: Roots | None = None
    waiting: SharedFlag | None = None


@contextmanager
def local_work(place: Workplace, job: JobContext, spec: FineTuneSpec) -> Iterator[Work]:
    """A fine-tune on this thread; its data is closed at the end."""
    names = (
        *(spec.train_dataset, spec.eval_dataset, spec.index_dataset),
        spec.replay_dataset,
    )
    if place.device == "cpu":
        job.yielding.count_processor_time()
    with (
        training_errors(),
        _own_threads(place.threads),
        own_stream(place.device),
        openmp_in_background(place.device) if place.cooperates else nullcontext(),
        opened(job, place.datasets, *names) as (train_set, eval_set, index_set, old_set),
    ):
        if train_set is None:
            raise RuntimeError("a fine-tune without data. This is a bug.")
        training, held_out = _divide(job, spec, train_set, eval_set)
        if old_set is not None:
            training = _replayed(job, training, old_set, held_out)
        # Prompts come after the split: they would tie all images of a label together.
        yield LocalWork(
            place,
            job,
            spec,
            with_texts(training, spec.prompts),
            with_texts(held_out, spec.prompts),
            with_texts(index_set, spec.prompts),
        )


@contextmanager
def _own_threads(count: int) -> Iterator[None]:
    """Inside, torch computes with so many threads, 0: as before. A run that goes on takes as many
    as it had; the next one on this thread does not."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class LocalWork:
    """Implements `Work`."""

    def __init__(
        self,
        place: Workplace,
        job: JobContext,
        spec: FineTuneSpec,
        training: PairSet,
        held_out: PairSet | None,
        extra: PairSet | None,
    ) -> None:
        self._place = place
        self._job = job
        self._spec = spec
        self._training = training
        self._held_out = held_out
        self._extra = extra
        self._before: Evaluation | None = None

    def make(self) -> Made:
        """See `Work`."""
        place, job, spec = self._place, self._job, self._spec
        folder = place.folders / job.id
        checkpoints = Checkpoints(folder, spec.keep_checkpoints)
        self._require_disk(folder, checkpoints)
        clip = load_clip(place.versions, spec.base_version, place.device)
        job.running()
        run = Run(
            job,
            spec,
            clip,
            self._held_out,
            self._extra,
            checkpoints,
            every_s=place.every_s,
            # A GPU is asked for whole steps at once: there is nothing to wait between.
            breathes=place.device == "cpu",
        )
        run.train(self._training, place.drawing, self._candidates(folder))
        if spec.wise_ft is not None:
            base = load_clip(place.versions, spec.base_version, "cpu")
            run.interpolate(base.model.state_dict(), spec.wise_ft)
        run.report()
        job.check_cancelled()
        manifest = place.versions.save_trained(
            clip.model, base=spec.base_version, source=f"job:{job.id}"
        )
        self._before = run.before
        return Made(
            version=manifest.id,
            metrics=metrics_of(run.best) if run.best else {},
            score=run.best.score if run.best else None,
        )

    def score_of(self, version: str) -> float:
        """See `Work`."""
        spec = self._spec
        if version == spec.base_version and self._before is not None:
            return self._before.score
        if self._held_out is None:
            raise RuntimeError("nothing to compare on. This is a bug.")
        clip = load_clip(self._place.versions, version, self._place.device)
        # Its own evaluator: tokenizer and image size may differ.
        evaluator = evaluator_of(
            clip,
            self._held_out,
            self._extra,
            k=spec.k,
            compat=spec.compat,
            waits=self._job.yielding.waits,
        )
        return measure(self._job, evaluator, clip).score

    def _candidates(self, folder: Path) -> Candidates | None:
        mining = self._spec.config.mining
        if mining is None or not mining.collection:
            return None
        # What is measured must not be trained on, as a wrong answer least of all.
        held_out = self._held_out.pairs if self._held_out is not None else ()
        found = Candidates(folder / CANDIDATES, {pair.image_key for pair in held_out})
        self._job.log(f"mining {len(found.keys)} images of {mining.collection}")
        return found

    def _require_disk(self, folder: Path, checkpoints: Checkpoints) -> None:
        """A run that fills the disk an hour later helps nobody. What one that goes on has written
        already is of what it needs."""
        spec = self._spec
        weights = self._place.versions.read_manifest(spec.base_version).size_bytes
        method = spec.config.method
        if method == "auto":
            few = count_pairs(self._training.pairs) < AUTO_LORA_BELOW
            method = "lora" if few else "full"
        states = DISK_FACTORS[method] * (max(1, spec.keep_checkpoints) + 1)
        needed = round(weights * (states + 2 + spec.soup))
        folder.mkdir(parents=True, exist_ok=True)
        more = max(0, needed - checkpoints.size_bytes)
        require_free_space(folder, more, floor=self._place.min_free_disk_bytes)


def _divide(
    job: JobContext, spec: FineTuneSpec, data: PairSet, eval_set: PairSet | None
) -> tuple[PairSet, PairSet | None]:
    """What to train on, and what to measure with, if anything."""
    if eval_set is not None:
        seen = HashSet(pair.image_key for pair in data.pairs).count_common(
            HashSet(pair.image_key for pair in eval_set.pairs)
        )
        if seen:
            job.log(f"{seen} images of the evaluation are trained on: it flatters", "WARNING")
        return data, eval_set
    if spec.val_split == 0:
        job.log("no held-out data: nothing is measured, the last weights are kept")
        return data, None
    training, held_out = split_pairs(data, spec.val_split, spec.config.seed)
    job.log(f"held out {len(held_out.pairs)} of {len(data.pairs)} pairs")
    return training, held_out


def _replayed(job: JobContext, new: PairSet, old: PairSet, held_out: PairSet | None) -> PairSet:
    """What to train on with old pairs mixed in."""
    training, left_out = with_replay(new, old, held_out)
    kept = len(old.pairs) - left_out
    why = f", without {left_out} of what is held out" if left_out else ""
    job.log(f"replaying {kept} old pairs{why}")
    return training
