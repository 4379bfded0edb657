"""One fine-tune: trains, measures on the way, keeps states to go on from, picks the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hotclip_server.jobs.context import Cancelled, Interrupted, JobContext
from hotclip_server.jobs.specs import FineTuneSpec
from hotclip_server.training.checkpoints import Checkpoints, Stored, library_versions
from hotclip_server.training.clip import Clip, count_weights
from hotclip_server.training.evaluate import Evaluation, Evaluator, metrics_of
from hotclip_server.training.events import (
    Chunk,
    ChunkHalved,
    EpochEnd,
    NegativesMined,
    RolledBack,
    SkippedStep,
    Started,
    Step,
    TrainEvent,
)
from hotclip_server.training.gradients import Drawing
from hotclip_server.training.jobs import measure
from hotclip_server.training.pairs import ImageSet, PairSet
from hotclip_server.training.progress import Snapshot
from hotclip_server.training.prompts import count_pairs
from hotclip_server.training.soup import greedy_soup
from hotclip_server.training.standing import Standing
from hotclip_server.training.summaries import end_line, epoch_line
from hotclip_server.training.trainer import Trainer
from hotclip_server.training.wise_ft import ALPHAS, interpolate, sweep

CHECKPOINT_EVERY_S = 60.0
"""Least time between two states: what a crash may cost."""
CHECKPOINT_SHARE = 0.05
"""Most of the time that writing them may take."""


class Run:
    """At its end `clip` holds the weights to keep.

    Args:
        evaluator: Measures held-out data; None: nothing is measured, and the last weights are kept.
        checkpoints: States of this run; if there is one, it goes on from there.
        every_s: Least time between two states.
        breathes: Whether serving may go first between two layers too, not only between chunks.
    """

    def __init__(
        self,
        job: JobContext,
        spec: FineTuneSpec,
        clip: Clip,
        evaluator: Evaluator | None,
        checkpoints: Checkpoints,
        *,
        every_s: float = CHECKPOINT_EVERY_S,
        breathes: bool = False,
    ) -> None:
        self.job = job
        self.spec = spec
        self.clip = clip
        self._checkpoints = checkpoints
        self._every_s = every_s
        self._breathes = breathes
        self._due = -math.inf
        self._standing = Standing()
        self._evaluator = evaluator
        self._new_best = False
        """Since the last state."""
        self._saved: object = None
        """See `_stands`: of the last state."""
        self._step = self._steps = 0
        self._data_wait_s = self._yielded_before = 0.0
        self._began = time.monotonic()

    @property
    def before(self) -> Evaluation | None:
        """What the base reaches."""
        return self._standing.before

    @property
    def best(self) -> Evaluation | None:
        """What the weights that are kept reach."""
        return self._standing.best

    def train(self, data: PairSet, drawing: Drawing, candidates: ImageSet | None = None) -> None:
        """Trains, measuring before, after each epoch and after the last.

        A wish to end is honoured between two chunks, after the state was written.
        """
        config = self.spec.config.resolved(
            # Reads all of them.
            pairs=count_pairs(data.pairs) if self.spec.config.method == "auto" else 0,
            weights=count_weights(self.clip.model),
            logit_bias=getattr(self.clip.model, "logit_bias", None) is not None,
            device=self.clip.device.type,
        )
        self.job.log(config.summary)
        trainer = Trainer(
            self.clip,
            data,
            config,
            drawing=drawing,
            last_good=lambda: _snapshot(self._checkpoints.load()),
            pause=self.job.yield_to_serving if self._breathes else None,
            waits=self.job.yielding.waits if self._breathes else None,
            candidates=candidates,
        )
        if not self._goes_on(trainer) and self._evaluator is not None:
            self._standing.before = measure(self.job, self._evaluator, self.clip)
            self.job.metric("BEFORE", metrics_of(self._standing.before), step=0)
        events = trainer.run()
        try:
            for event in events:
                if self._handle(event, trainer):
                    events.close()
                    trainer.keep_average()
                    break
                if isinstance(event, EpochEnd):
                    continue  # it is over, for the state too, with the next event
                self._keep(event, trainer)
                self.job.check_cancelled()
                self.job.yield_to_serving()
        except (Cancelled, Interrupted):
            events.close()  # the model has the weights of the last whole step again
            if self._saved != self._stands(trainer.snapshot()):
                self._save(trainer)
            raise
        self._choose()

    def interpolate(self, base: Mapping[str, Tensor], alpha: float) -> None:
        """Goes back towards the weights of the base (WiSE-FT), and measures the way there."""
        model, tuned = self.clip.model, _copy(self.clip.model)
        if self._evaluator is not None and self.before is not None and self.best is not None:
            measured = {0.0: self.before, 1.0: self.best}
            found = sweep(
                model,
                base,
                tuned,
                self._measured,
                alphas=sorted({*ALPHAS, alpha}),
                known=measured,
            )
            for place, evaluation in found:
                metrics = {"alpha": place, **metrics_of(evaluation)}
                self.job.metric("ALPHA", metrics, step=self._step, total_steps=self._steps)
                measured[place] = evaluation
            self._standing.best = measured[alpha]
        interpolate(model, base, tuned, alpha)
        self.job.log(f"the weights are those of the base and {alpha:g} of the way to the trained")

    def report(self) -> None:
        """What the weights that are kept reach, beside what the base did."""
        before, after = self.before, self.best
        if before is None or after is None:
            return
        self.job.metric(
            "AFTER", metrics_of(after), step=self._step, total_steps=self._steps, progress=0.97
        )
        self.job.log(end_line(metrics_of(before), metrics_of(after), self.spec.monitor))
        old = {example.query: example.found for example in before.examples}
        for example in after.examples:
            self.job.example(
                example.query,
                before=old[example.query][:10],
                after=example.found[:10],
                relevant=example.relevant,
            )

    def _goes_on(self, trainer: Trainer) -> bool:
        """Puts the newest state back, if there is one; what was read is not kept."""
        stored = self._checkpoints.load()
        if stored is None:
            return False
        torch.set_num_threads(stored.threads)  # sums depend on how they are divided
        trainer.restore(stored.snapshot)
        self._standing = Standing.from_json(stored.notes)
        self._saved = self._stands(stored.snapshot)
        self.job.resumed(stored.snapshot.progress.step)
        if dict(stored.libraries) != library_versions():
            self.job.log(
                f"the run began with {_listed(stored.libraries)} and goes on with "
                f"{_listed(library_versions())}: results may differ in the last bits",
                "WARNING",
            )
        return True

    def _handle(self, event: TrainEvent, trainer: Trainer) -> bool:
        """Tells what happened; whether the run should end early."""
        match event:
            case Started():
                self._steps = event.steps
                self._began, self._yielded_before = time.monotonic(), self.job.yielded_s
                self.job.log(
                    f"training on {event.pairs} pairs of {event.images} images: "
                    f"{event.steps} steps, {event.epochs} epochs, "
                    f"{event.chunk_size} rows at a time"
                )
            case Step():
                self._tell_step(event)
            case SkippedStep():
                self._step = event.step
                self.job.log(
                    f"step {event.step} was not finite and changed nothing: loss {event.loss}, "
                    f"gradient norm {event.grad_norm}; images {', '.join(event.samples)}",
                    "WARNING",
                )
            case NegativesMined():
                self.job.log(f"epoch {event.epoch}: hard negatives for {event.pairs} pairs")
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
                return self._end_epoch(event, trainer)
            case Chunk():
                pass  # the loop that drives it lets others use the device
        return False

    def _tell_step(self, event: Step) -> None:
        self._step = event.step
        self._data_wait_s += event.data_wait_s
        yielded = self.job.yielded_s - self._yielded_before
        self.job.metric(
            "STEP",
            {
                "loss": event.loss,
                "learning_rate": event.learning_rate,
                "logit_scale": event.logit_scale,
                "grad_norm": event.grad_norm,
                "samples_per_second": event.samples_per_second,
                "data_wait_s": self._data_wait_s,
                "yielded_share": yielded / max(time.monotonic() - self._began, 1e-9),
                "skipped_steps": event.skipped,
                "chunk_size": event.chunk_size,
            },
            step=event.step,
            total_steps=event.steps,
            epoch=event.epoch - 1,
            progress=0.95 * event.step / event.steps,
        )

    def _end_epoch(self, event: EpochEnd, trainer: Trainer) -> bool:
        metrics = {
            "yielded_s": self.job.yielded_s,
            "skipped_steps": float(trainer.progress.skipped),
        }
        if math.isfinite(event.mean_loss):
            metrics["epoch_loss"] = event.mean_loss
        best = False
        if self._evaluator is not None:
            found = self._measured()
            metrics.update(metrics_of(found))
            best = self._consider(found, trainer)
        self.job.metric(
            "EPOCH", metrics, step=event.step, total_steps=event.steps, epoch=event.epoch - 1
        )
        self.job.log(epoch_line(event, metrics, self.spec.monitor, best=best))
        self._due = -math.inf  # what was measured should not be measured again
        rule = self.spec.early_stopping
        if rule is None or rule.monitor not in metrics or event.step == event.steps:
            return False
        if not self._standing.looked(rule, metrics[rule.monitor]):
            return False
        self.job.log(
            f"stopped early: {rule.monitor} is no better than {self._standing.monitored:g} since "
            f"{self._standing.stale} epochs"
        )
        return True

    def _consider(self, found: Evaluation, trainer: Trainer) -> bool:
        """Keeps the weights of an epoch that are the best or may go into a soup.

        Returns:
            Whether they are the best.
        """
        standing = self._standing
        better = standing.best is None or found.score > standing.best.score
        if not better and not self.spec.soup:
            return False
        name = self._checkpoints.save_weights(trainer.changed())
        if better:
            standing.best, standing.best_weights, self._new_best = found, name, True
        if self.spec.soup:
            standing.last = [*standing.last, (name, found.score)][-self.spec.soup :]
        return better

    def _choose(self) -> None:
        """Puts the best weights into the model, or a soup that is better."""
        standing = self._standing
        if standing.best is None:
            return
        scores = dict([*standing.last, (standing.best_weights, standing.best.score)])
        self._load(self._checkpoints.load_weights(standing.best_weights))
        if self.spec.soup and len(scores) > 1:
            soup = greedy_soup(
                scores, standing.best, self._checkpoints.load_weights, self._load, self._measured
            )
            standing.best = soup.evaluation
            self.job.log(f"averaged the weights of {soup.members} epochs of {len(scores)}")

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        state = self.clip.model.state_dict()
        for name, tensor in tensors.items():
            state[name].copy_(tensor)

    def _measured(self) -> Evaluation:
        if self._evaluator is None:
            raise RuntimeError("nothing to measure on. This is a bug.")
        return measure(self.job, self._evaluator, self.clip)

    def _keep(self, event: TrainEvent, trainer: Trainer) -> None:
        """Writes the state when it is time, and whenever the plan of the run changed."""
        begins = isinstance(event, Started) and event.done == 0
        changed = begins or isinstance(event, ChunkHalved | RolledBack)
        last = isinstance(event, Step) and event.step == event.steps
        timely = isinstance(event, Step) and time.monotonic() >= self._due
        if changed or last or timely:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        snapshot = trainer.snapshot()
        if not all(bool(torch.isfinite(t).all()) for t in snapshot.weights.values()):
            self.job.log("no state is written: weights are not finite", "WARNING")
            return
        began = time.monotonic()
        size = self._checkpoints.save(snapshot, self._standing.to_json(), self._standing.used)
        took = time.monotonic() - began
        self._saved = self._stands(snapshot)
        self._due = time.monotonic() + max(self._every_s, took / CHECKPOINT_SHARE)
        self.job.checkpoint(step=snapshot.progress.step, size_bytes=size, best=self._new_best)
        self._new_best = False

    def _stands(self, snapshot: Snapshot) -> object:
        """Equal for two states that tell the same: a step changes it, and so does a measurement."""
        return snapshot.progress, self._standing.to_json()


def _snapshot(stored: Stored | None) -> Snapshot | None:
    return None if stored is None else stored.snapshot


def _listed(libraries: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in libraries.items())


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
