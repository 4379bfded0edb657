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

from hotclip_server.datasets.joined import JoinedPairs
from hotclip_server.jobs.context import JobContext
from hotclip_server.jobs.specs import FineTuneSpec
from hotclip_server.shared_flag import SharedFlag
from hotclip_server.storage.atomic import require_free_space
from hotclip_server.training.candidates import CANDIDATES, Candidates
from hotclip_server.training.checkpoints import Checkpoints
from hotclip_server.training.clip import Clip
from hotclip_server.training.config import AUTO_LORA_BELOW, Method
from hotclip_server.training.evaluate import Evaluation, Evaluator, metrics_of
from hotclip_server.training.finetune_run import CHECKPOINT_EVERY_S, Run
from hotclip_server.training.gradients import Drawing
from hotclip_server.training.jobs import (
    Datasets,
    Versions,
    evaluator_of,
    load_clip,
    measure,
    opened,
    openmp_in_background,
    own_stream,
    training_errors,
)
from hotclip_server.training.overlap import overlap
from hotclip_server.training.pairs import PairSet, SomePairs
from hotclip_server.training.prompts import count_pairs, with_texts
from hotclip_server.training.replay import with_replay
from hotclip_server.training.split import split_pairs, without_negatives_of

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


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run is measured with, in which every image has a text."""

    queries: PairSet
    """Of the retrieval metrics."""
    rated: PairSet | None
    """Pairs of the validation loss; None: the queries."""
    extra: PairSet | None
    """Searched besides the queries' own images and texts."""

    @property
    def image_keys(self) -> set[str]:
        """Of the images that must not be trained on, which those of `extra` may be."""
        sets = [one for one in (self.queries, self.rated) if one is not None]
        return {pair.image_key for one in sets for pair in one.pairs}


@contextmanager
def local_work(place: Workplace, job: JobContext, spec: FineTuneSpec) -> Iterator[Work]:
    """A fine-tune on this thread; its data is closed at the end."""
    names = (
        *(spec.train_dataset, spec.eval_dataset, spec.query_dataset, spec.index_dataset),
        spec.replay_dataset,
    )
    if place.device == "cpu":
        job.yielding.count_processor_time()
    with (
        training_errors(),
        _own_threads(place.threads),
        own_stream(place.device),
        openmp_in_background(place.device) if place.cooperates else nullcontext(),
        opened(job, place.datasets, *names) as (train_set, eval_set, query_set, index_set, old_set),
    ):
        if train_set is None:
            raise RuntimeError("a fine-tune without data. This is a bug.")
        training, held_out = _divide(job, spec, train_set, eval_set, query_set)
        if old_set is not None:
            training = _replayed(job, training, old_set, _joined(held_out, query_set))
        # Prompts come after the split: they would tie all images of a label together.
        queries = with_texts(held_out if query_set is None else query_set, spec.prompts)
        measured = None
        if queries is not None:
            measured = Measured(
                queries=queries,
                rated=None if query_set is None else with_texts(held_out, spec.prompts),
                extra=with_texts(index_set, spec.prompts),
            )
        yield LocalWork(place, job, spec, with_texts(training, spec.prompts), measured)


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
        measured: Measured | None,
    ) -> None:
        self._place = place
        self._job = job
        self._spec = spec
        self._training = training
        self._measured = measured
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
            self._evaluator(clip),
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
        if version == self._spec.base_version and self._before is not None:
            return self._before.score
        clip = load_clip(self._place.versions, version, self._place.device)
        evaluator = self._evaluator(clip)
        if evaluator is None:
            raise RuntimeError("nothing to compare on. This is a bug.")
        return measure(self._job, evaluator, clip).score

    def _evaluator(self, clip: Clip) -> Evaluator | None:
        """For this model and no other: tokenizer and image size may differ."""
        measured, spec = self._measured, self._spec
        if measured is None:
            return None
        return evaluator_of(
            clip,
            measured.queries,
            measured.extra,
            rated=measured.rated,
            monitor=spec.monitor,
            k=spec.k,
            compat=spec.compat,
            loss_batch=spec.config.batch_size,
            image_locked=spec.config.locks_image,
            waits=self._job.yielding.waits,
        )

    def _candidates(self, folder: Path) -> Candidates | None:
        mining = self._spec.config.mining
        if mining is None or not mining.collection:
            return None
        # What is measured must not be trained on, as a wrong answer least of all.
        without = self._measured.image_keys if self._measured is not None else set()
        found = Candidates(folder / CANDIDATES, without)
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
    job: JobContext,
    spec: FineTuneSpec,
    data: PairSet,
    eval_set: PairSet | None,
    query_set: PairSet | None,
) -> tuple[PairSet, PairSet | None]:
    """What to train on, and what is held out besides the queries that were given, if anything."""
    training, held_out = data, eval_set
    if eval_set is None and spec.val_split > 0:
        training, held_out = split_pairs(data, spec.val_split, spec.config.seed)
        job.log(f"held out {len(held_out.pairs)} of {len(data.pairs)} pairs")
    elif eval_set is None and query_set is None:
        job.log("no held-out data: nothing is measured, the last weights are kept")
    elif eval_set is None:
        job.log("all pairs are trained on: the validation loss is that of the queries")
    for measured, what in ((eval_set, "evaluation"), (query_set, "queries")):
        if measured is not None:
            training = _without(job, training, measured, what)
    return training, held_out


def _without(job: JobContext, training: PairSet, measured: PairSet, what: str) -> PairSet:
    """What to train on, without negatives that are measured. Pairs stay, and are told of: whoever
    gave both sets may want it so."""
    found = overlap(training.pairs, measured.pairs)
    if found.images or found.texts:
        job.log(f"{found} of the {what} are trained on: it flatters", "WARNING")
    if not found.negatives:
        return training
    job.log(f"left out {found.negatives} negatives of training pairs that are of the {what}")
    return SomePairs(without_negatives_of(training.pairs, measured.pairs), training)


def _joined(*sets: PairSet | None) -> PairSet | None:
    """Those that are there as one; None if there is none."""
    found = [one for one in sets if one is not None]
    return JoinedPairs(*found) if len(found) > 1 else next(iter(found), None)


def _replayed(job: JobContext, new: PairSet, old: PairSet, held_out: PairSet | None) -> PairSet:
    """What to train on with old pairs mixed in."""
    training, left_out = with_replay(new, old, held_out)
    kept = len(old.pairs) - left_out
    why = f", without {left_out} of what is held out" if left_out else ""
    job.log(f"replaying {kept} old pairs{why}")
    return training
