"""The job that makes a better version: prepare → measure → train → measure → stage → activate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from hotclip_server.errors import Aborted, HotclipError, ResourceExhausted
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.records import JobKind
from hotclip_server.jobs.releases import Releases
from hotclip_server.jobs.specs import ActivationRule, FineTuneSpec
from hotclip_server.models.memory import free_bytes_of
from hotclip_server.training.clip import Clip
from hotclip_server.training.evaluate import Evaluation, Evaluator
from hotclip_server.training.events import (
    Chunk,
    ChunkHalved,
    EpochEnd,
    RolledBack,
    SkippedStep,
    Started,
    Step,
    TrainEvent,
)
from hotclip_server.training.gradients import Drawing
from hotclip_server.training.jobs import (
    MONITOR,
    Datasets,
    Versions,
    evaluator_of,
    load_clip,
    measure,
    metrics_of,
    opened,
    own_stream,
    training_errors,
)
from hotclip_server.training.pairs import PairSet
from hotclip_server.training.prompts import count_pairs, with_texts
from hotclip_server.training.split import split_pairs
from hotclip_server.training.trainer import train
from hotclip_server.training.wise_ft import ALPHAS, interpolate, sweep

ACTIVATION_ATTEMPTS = 5
MEMORY_FACTOR = 7
"""Bytes that training takes at least, a byte of the weights file: weights, their average,
gradients, two moments of AdamW, the best weights so far, and one more while loading. Activations
come on top."""


class FineTuneHandler:
    """Implements `JobHandler`.

    Args:
        versions: Loads the base, stores the result.
        device: Where it trains, e.g. "cpu" or "cuda:0".
        threads: CPU threads of a step; 0: torch's own choice.
        free_bytes: Free memory of the device, None if unknown; default: asks the device.
        export_onnx: Makes ONNX files of a version of a model in a job; gives the artifact's id.
        drawing: See `train`.
    """

    kind = JobKind.FINE_TUNE

    def __init__(
        self,
        versions: Versions,
        datasets: Datasets,
        releases: Releases,
        *,
        device: str = "cpu",
        threads: int = 0,
        free_bytes: Callable[[], int | None] | None = None,
        export_onnx: Callable[[JobContext, str, str], str] | None = None,
        drawing: Drawing = nullcontext,
    ) -> None:
        self._drawing = drawing
        self._export_onnx = export_onnx
        self._versions = versions
        self._datasets = datasets
        self._releases = releases
        self._device = device
        self._threads = threads
        self._free_bytes = free_bytes or free_bytes_of(device)

    def run(self, job: JobContext) -> JobResult:
        """Trains and releases; see `JobHandler.run`."""
        if self._threads:
            torch.set_num_threads(self._threads)  # of this thread alone
        spec = FineTuneSpec.from_json(job.spec)
        names = (spec.train_dataset, spec.eval_dataset, spec.index_dataset)
        with (
            training_errors(),
            own_stream(self._device),
            opened(self._datasets, *names) as (train_set, eval_set, index_set),
        ):
            if train_set is None:
                raise RuntimeError("a fine-tune without data. This is a bug.")
            training, held_out = _divide(job, spec, train_set, eval_set)
            # Prompts come after the split: they would tie all images of a label together.
            training = with_texts(training, spec.prompts)
            held_out = with_texts(held_out, spec.prompts)
            extra = with_texts(index_set, spec.prompts)
            self._require_memory(spec.base_version)
            clip = load_clip(self._versions, spec.base_version, self._device)
            job.running()
            run = _Run(job, spec, clip, held_out, extra)
            run.train(training, self._drawing)
            if spec.wise_ft is not None:
                base = load_clip(self._versions, spec.base_version, "cpu")
                run.interpolate(base.model.state_dict(), spec.wise_ft)
            run.report()
            result = self._release(run)
            return replace(result, artifacts=self._exported(job, spec, result.result_version))

    def _require_memory(self, version: str) -> None:
        """A process that the kernel ends for want of memory serves nobody."""
        free = self._free_bytes()
        needed = self._versions.read_manifest(version).size_bytes * MEMORY_FACTOR
        if free is not None and free < needed:
            raise ResourceExhausted(
                f"training version {version} needs {needed} bytes at least, {free} are free",
                reason="OUT_OF_MEMORY",
            )

    def _exported(self, job: JobContext, spec: FineTuneSpec, version: str) -> tuple[str, ...]:
        """The version is there whatever becomes of its files: Export can make them later."""
        if not spec.export_onnx:
            return ()
        if self._export_onnx is None:
            raise RuntimeError("nothing here exports. This is a bug.")
        try:
            return (self._export_onnx(job, version, spec.model),)
        except HotclipError as error:
            job.log(f"version {version} has no ONNX files: {error.message}", "WARNING")
            return ()

    def _release(self, run: _Run) -> JobResult:
        job, spec = run.job, run.spec
        job.check_cancelled()
        manifest = self._versions.save_trained(
            run.clip.model, base=spec.base_version, source=f"job:{job.id}"
        )
        metrics = metrics_of(run.best) if run.best else {}
        self._releases.register(spec.model, manifest, metrics)
        job.log(f"stored version {manifest.id}")
        if spec.activation is ActivationRule.ALWAYS:
            self._releases.activate(spec.model, manifest.id)
            return _result(job, manifest.id, True, "activated")
        try:
            self._releases.stage(manifest.id)
        except ResourceExhausted as error:
            # The weights are safe on disk; a later ActivateVersion loads them.
            job.log(f"version {manifest.id} is not staged: {error.message}", "WARNING")
        if spec.activation is ActivationRule.NEVER:
            return _result(job, manifest.id, False, "staged")
        if run.best is None:
            return _result(job, manifest.id, False, "staged: no held-out data to compare with")
        return self._activate_if_better(run, manifest.id, run.best.score)

    def _activate_if_better(self, run: _Run, version: str, score: float) -> JobResult:
        """Compare-and-set: against whatever is live now, on the same held-out data."""
        for _ in range(ACTIVATION_ATTEMPTS):
            state = self._releases.state(run.spec.model)
            live = state.live_version
            present = run.score_of(live, self._versions, self._device)
            if not score > present:
                why = f"staged: {MONITOR} {score:.4f}, live version {live} has {present:.4f}"
                return _result(run.job, version, False, why)
            try:
                self._releases.activate(run.spec.model, version, etag=state.etag)
            except Aborted:
                run.job.log("another version went live meanwhile; comparing again")
                continue
            why = f"activated: {MONITOR} {score:.4f}, version {live} had {present:.4f}"
            return _result(run.job, version, True, why)
        return _result(run.job, version, False, "staged: the live version kept changing")


class _Run:
    """One training with what is measured on the way; at its end `clip` holds the weights to
    keep."""

    def __init__(
        self,
        job: JobContext,
        spec: FineTuneSpec,
        clip: Clip,
        held_out: PairSet | None,
        extra: PairSet | None,
    ) -> None:
        self.job = job
        self.spec = spec
        self.clip = clip
        self.best: Evaluation | None = None
        self._held_out = held_out
        self._extra = extra
        self._before: Evaluation | None = None
        self._best_weights: dict[str, Tensor] = {}
        self._evaluator: Evaluator | None = None
        self._step = self._steps = self._skipped = 0
        self._data_wait_s = self._yielded_before = 0.0
        self._began = time.monotonic()

    def train(self, data: PairSet, drawing: Drawing) -> None:
        """Trains, measuring before, after each epoch and after the last."""
        if self._held_out is not None:
            self._evaluator = evaluator_of(
                self.clip,
                self._held_out,
                self._extra,
                k=self.spec.k,
                compat=self.spec.compat,
                loss_batch=self.spec.config.batch_size,
            )
            self._before = measure(self.job, self._evaluator, self.clip)
            self.job.metric("BEFORE", metrics_of(self._before), step=0)
        config = self.spec.config.resolved(
            pairs=count_pairs(data.pairs),
            logit_bias=self.clip.model.logit_bias is not None,
            device=self.clip.device.type,
        )
        self.job.log(config.summary)
        for event in train(self.clip, data, config, drawing=drawing):
            self._handle(event)
            self.job.check_cancelled()
            self.job.yield_to_serving()
        if self._before is not None and self.best is not None:
            with torch.no_grad():
                for name, tensor in self.clip.model.state_dict().items():
                    tensor.copy_(self._best_weights[name])
        self._best_weights.clear()

    def interpolate(self, base: Mapping[str, Tensor], alpha: float) -> None:
        """Goes back towards the weights of the base (WiSE-FT), and measures the way there."""
        model, tuned = self.clip.model, _copy(self.clip.model)
        if self._evaluator is not None and self._before is not None and self.best is not None:
            evaluator = self._evaluator
            measured = {0.0: self._before, 1.0: self.best}
            found = sweep(
                model,
                base,
                tuned,
                lambda: measure(self.job, evaluator, self.clip),
                alphas=sorted({*ALPHAS, alpha}),
                known=measured,
            )
            for place, evaluation in found:
                metrics = {"alpha": place, **metrics_of(evaluation)}
                self.job.metric("ALPHA", metrics, step=self._step, total_steps=self._steps)
                measured[place] = evaluation
            self.best = measured[alpha]
        interpolate(model, base, tuned, alpha)
        self.job.log(f"the weights are those of the base and {alpha:g} of the way to the trained")

    def report(self) -> None:
        """What the weights that are kept reach, beside what the base did."""
        if self._before is not None and self.best is not None:
            self._report(self._before, self.best)

    def score_of(self, version: str, versions: Versions, device: str) -> float:
        """What another version reaches on the held-out data."""
        if version == self.spec.base_version and self._before is not None:
            return self._before.score
        if self._held_out is None:
            raise RuntimeError("nothing to compare on. This is a bug.")
        clip = load_clip(versions, version, device)
        # Its own evaluator: tokenizer and image size may differ.
        evaluator = evaluator_of(
            clip, self._held_out, self._extra, k=self.spec.k, compat=self.spec.compat
        )
        return measure(self.job, evaluator, clip).score

    def _handle(self, event: TrainEvent) -> None:
        match event:
            case Started():
                self._steps = event.steps
                self._began, self._yielded_before = time.monotonic(), self.job.yielded_s
                self.job.log(
                    f"training on {event.pairs} pairs of {event.images} images: "
                    f"{event.steps} steps, {event.epochs} epochs"
                )
            case Step():
                self._step = event.step
                self._data_wait_s += event.data_wait_s
                self.job.metric(
                    "STEP",
                    {
                        "loss": event.loss,
                        "learning_rate": event.learning_rate,
                        "logit_scale": event.logit_scale,
                        "grad_norm": event.grad_norm,
                        "samples_per_second": event.samples_per_second,
                        "data_wait_s": self._data_wait_s,
                        "yielded_share": self._yielded_share(),
                        "skipped_steps": self._skipped,
                    },
                    step=event.step,
                    total_steps=event.steps,
                    epoch=event.epoch - 1,
                    progress=0.95 * event.step / event.steps,
                )
            case SkippedStep():
                self._step, self._skipped = event.step, self._skipped + 1
                self.job.log(
                    f"step {event.step} was not finite and changed nothing: loss {event.loss}, "
                    f"gradient norm {event.grad_norm}; images {', '.join(event.samples)}",
                    "WARNING",
                )
            case ChunkHalved():
                self.job.log(
                    f"step {event.step} did not fit into memory: again in chunks of "
                    f"{event.chunk_size}",
                    "WARNING",
                )
            case RolledBack():
                self.job.log(
                    f"back from step {event.from_step} to {event.step}, with "
                    f"{event.rate_factor:g} of the learning rate",
                    "WARNING",
                )
            case EpochEnd():
                self._end_epoch(event)
            case Chunk():
                pass  # its driver lets others use the device

    def _yielded_share(self) -> float:
        """Of the time since training began."""
        yielded = self.job.yielded_s - self._yielded_before
        return yielded / max(time.monotonic() - self._began, 1e-9)

    def _end_epoch(self, event: EpochEnd) -> None:
        metrics = {"yielded_s": self.job.yielded_s, "skipped_steps": float(self._skipped)}
        if math.isfinite(event.mean_loss):
            metrics["epoch_loss"] = event.mean_loss
        if self._evaluator is not None:
            found = measure(self.job, self._evaluator, self.clip)
            metrics.update(metrics_of(found))
            if self.best is None or found.score > self.best.score:
                self.best = found
                self._best_weights = _copy(self.clip.model)
        self.job.metric(
            "EPOCH", metrics, step=event.step, total_steps=event.steps, epoch=event.epoch - 1
        )

    def _report(self, before: Evaluation, after: Evaluation) -> None:
        self.job.metric(
            "AFTER", metrics_of(after), step=self._step, total_steps=self._steps, progress=0.97
        )
        old = {example.query: example.found for example in before.examples}
        for example in after.examples:
            self.job.example(
                example.query,
                before=old[example.query][:10],
                after=example.found[:10],
                relevant=example.relevant,
            )


def _divide(
    job: JobContext, spec: FineTuneSpec, data: PairSet, eval_set: PairSet | None
) -> tuple[PairSet, PairSet | None]:
    """What to train on, and what to measure with, if anything."""
    if eval_set is not None:
        known = {pair.image_key for pair in data.pairs}
        seen = {pair.image_key for pair in eval_set.pairs} & known
        if seen:
            job.log(f"{len(seen)} images of the evaluation are trained on: it flatters", "WARNING")
        return data, eval_set
    if spec.val_split == 0:
        job.log("no held-out data: nothing is measured, the last weights are kept")
        return data, None
    training, held_out = split_pairs(data, spec.val_split, spec.config.seed)
    job.log(f"held out {len(held_out.pairs)} of {len(data.pairs)} pairs")
    return training, held_out


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _result(job: JobContext, version: str, activated: bool, message: str) -> JobResult:
    job.log(f"version {version}: {message}")
    return JobResult(result_version=version, activated=activated, message=message)
