"""Contrastive training as a generator of steps.

The caller drives it: between two events it may pause, evaluate, write a checkpoint or stop, and
nothing happens that it did not ask for. The model is trained in place. All that a run needs to go
on is a `Snapshot`; batches, captions, augmentation and dropout follow from the seed and the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotclip_server.models.memory import free_bytes_of
from hotclip_server.training.average import WeightAverage
from hotclip_server.training.batch_gradients import BatchGradients
from hotclip_server.training.clip import Clip, count_weights
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.dataset import Batch, Drawn, TrainingSet
from hotclip_server.training.errors import TrainingDiverged
from hotclip_server.training.events import (
    Chunk,
    EpochEnd,
    NegativesMined,
    RolledBack,
    SkippedStep,
    Started,
    Step,
    TrainEvent,
)
from hotclip_server.training.every_item import EveryItem
from hotclip_server.training.gradients import Drawing, Gradients
from hotclip_server.training.locked import LockedFeatures
from hotclip_server.training.losses import clamp_log_scale
from hotclip_server.training.miner import Miner
from hotclip_server.training.modes import lay_out, set_modes
from hotclip_server.training.optim import learning_rate, make_optimizer, set_learning_rate
from hotclip_server.training.pairs import ImageSet, PairSet
from hotclip_server.training.progress import Progress, Snapshot
from hotclip_server.training.prompts import count_pairs
from hotclip_server.training.sampler import batches_per_epoch
from hotclip_server.training.towers import Towers
from hotclip_server.training.tuning import tuning_of
from hotclip_server.training.update import Pauses, clip_gradients, step

MAX_SKIPPED_STEPS = 3
NAMED = 10
"""Samples that an error names."""
T = TypeVar("T")
NOTHING = np.zeros(0, dtype=np.int64)


def train(
    clip: Clip,
    data: PairSet,
    config: TrainConfig,
    *,
    image_budget_bytes: int | None = None,
    drawing: Drawing = nullcontext,
) -> Generator[TrainEvent, None, None]:
    """`Trainer.run` of a new run."""
    return Trainer(clip, data, config, image_budget_bytes=image_budget_bytes, drawing=drawing).run()


class Trainer:
    """One run.

    Args:
        clip: Its model is trained in place.
        image_budget_bytes: Of decoded images that are kept; None: by the memory that is free.
        drawing: Entered around operations that may draw random numbers on the device.
        last_good: The state to go back to when three steps in a row were not finite, if any.
        pause: Called between the layers of a pass; see `breathing`.
        waits: Whether others should go first; then no image is decoded ahead. Any thread.
        free_bytes: Free memory of the device, None if unknown; default: asks the device.
        candidates: Images that are mined for negatives besides those of the pairs.

    Raises InvalidPairs if fewer than two images are there.
    """

    def __init__(
        self,
        clip: Clip,
        data: PairSet,
        config: TrainConfig,
        *,
        image_budget_bytes: int | None = None,
        drawing: Drawing = nullcontext,
        last_good: Callable[[], Snapshot | None] = lambda: None,
        pause: Callable[[], object] | None = None,
        waits: Callable[[], bool] | None = None,
        free_bytes: Callable[[], int | None] | None = None,
        candidates: ImageSet | None = None,
    ) -> None:
        self._clip = clip
        self._last_good = last_good
        self._pause = pause
        config = config.resolved(
            # Reads all of them.
            pairs=count_pairs(data.pairs) if config.method == "auto" else 0,
            weights=count_weights(clip.model),
            logit_bias=clip.model.logit_bias is not None,
            device=clip.device.type,
        )
        self._set = TrainingSet(
            clip,
            data,
            negatives=config.negatives,
            budget_bytes=image_budget_bytes,
            candidates=candidates,
            pause=pause,
            waits=waits,
        )
        self._config = config
        self._an_epoch = batches_per_epoch(self._set.images, config.batch_size)
        self.steps = config.max_steps or config.epochs * self._an_epoch
        self.epochs = -(-self.steps // self._an_epoch)
        lay_out(clip.model)
        self._towers = Towers(clip, config)
        items = EveryItem(self._towers, self._set, drawing)
        self._locked = LockedFeatures(self._towers, config, items)
        self._miner = (
            Miner(config.mining, self._towers, self._set, items, self._locked)
            if config.mining is not None
            else None
        )
        self._tuning = tuning_of(clip.model, config)
        self._optimizer = make_optimizer(self._tuning.parameters, config)
        horizon = config.ema * self.steps
        self._average = WeightAverage(self._tuning, horizon) if config.ema > 0 else None
        free = free_bytes or free_bytes_of(str(clip.device))
        self._gradients = BatchGradients(clip, config, self._set, self._towers, drawing, free)
        self._progress = Progress(chunk_size=config.chunk_size)
        self._epoch = -1
        self._batches: list[NDArray[np.int64]] = []
        self._captions: Drawn | None = None

    @property
    def progress(self) -> Progress:
        """Where it stands; a copy."""
        return replace(self._progress)

    def changed(self) -> dict[str, Tensor]:
        """The model's own tensors that differ from the base's, live, by their names in its state:
        what weights to come back to consist of."""
        state = self._clip.model.state_dict()
        statistics = self._config.train_batch_norm
        buffers = dict(self._clip.model.named_buffers()) if statistics else {}
        return {name: state[name] for name in (*self._tuning.moved, *buffers) if name in state}

    def snapshot(self) -> Snapshot:
        """The state after the last whole step; not while an EpochEnd is handled."""
        average = self._average
        self._progress.averaged = average.updates if average else 0
        miner = self._miner
        self._progress.mined_epoch = miner.epoch if miner else -1
        optimizer = {
            f"{name}/{key}": value
            for name, parameter in self._tuning.parameters.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        return Snapshot(
            progress=self.progress,
            weights=self._tuning.state(),
            average=average.state() if average else {},
            optimizer=optimizer,
            mined=miner.state() if miner else {},
        )

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from a state of the same run: same model, data and configuration."""
        for name, tensor in self._tuning.state().items():
            tensor.copy_(snapshot.weights[name])
        self._tuning.apply()
        self._progress = replace(snapshot.progress)
        if self._average is not None:
            self._average.restore(snapshot.average, snapshot.progress.averaged)
        if self._miner is not None:
            self._miner.restore(snapshot.mined, snapshot.progress.mined_epoch)
        self._optimizer.state.clear()
        for key, stored in snapshot.optimizer.items():
            name, _, entry = key.rpartition("/")
            parameter = self._tuning.parameters[name]
            if stored.shape == parameter.shape:
                # Fused optimizers take memory as it lies: it must lie as the parameter's does.
                value = torch.empty_like(parameter, dtype=stored.dtype)
            else:  # its own "step", on the host unless it is fused
                fused = self._optimizer.defaults.get("fused")
                value = torch.empty_like(stored, device=parameter.device if fused else None)
            self._optimizer.state[parameter][entry] = value.copy_(stored)

    def keep_average(self) -> None:
        """Puts the moving average, if there is one, into the model for good, as the end of `run`
        does: for who ends it at an EpochEnd."""
        if self._average is not None:
            self._average.swap_in()

    def run(self) -> Generator[TrainEvent, None, None]:
        """Trains, yielding what happened.

        After the last event the model holds the weights to keep (the moving average, if
        configured) in evaluation mode with no parameter requiring gradients. Closing the generator
        earlier leaves the weights of the last step.

        Raises InvalidPairs if an image can't be decoded, and TrainingDiverged if three steps in a
        row were not finite and there is nothing to go back to, or it came again; the weights are
        finite even then.
        """
        progress = self._progress
        if progress.chunk_size == 0 or self._config.train_batch_norm:
            set_modes(self._clip.model, self._tuning.moved, self._config)
            progress.chunk_size = self._gradients.fitting_chunk()
        yield Started(
            steps=self.steps,
            epochs=self.epochs,
            images=self._set.images,
            pairs=self._set.pairs,
            done=progress.step,
            chunk_size=progress.chunk_size,
        )
        try:
            with self._gradients.passes(self._pause):
                yield from self._encode_locked()
                while self._epoch_is_over() or self._progress.step < self.steps:
                    if self._epoch_is_over():
                        yield from self._end_epoch()
                        continue
                    yield from self._mine()
                    yield from self._step()
            self.keep_average()
        finally:
            self._clip.model.eval().requires_grad_(False)
            self._clip.model.zero_grad(set_to_none=True)

    def _epoch_is_over(self) -> bool:
        step = self._progress.step
        at_end = step == self.steps or step % self._an_epoch == 0
        return at_end and self._progress.epochs_ended < -(-step // self._an_epoch)

    def _end_epoch(self) -> Iterator[TrainEvent]:
        progress = self._progress
        end = EpochEnd(
            epoch=progress.epochs_ended + 1,
            epochs=self.epochs,
            step=progress.step,
            steps=self.steps,
            mean_loss=progress.loss_sum / progress.losses if progress.losses else math.nan,
        )
        self._clip.model.eval()
        with self._average.swapped_in() if self._average is not None else nullcontext():
            yield end
        # Only now: a run that ends while this is handled tells it again when it goes on.
        progress.epochs_ended += 1
        progress.loss_sum, progress.losses = 0.0, 0

    def _step(self) -> Iterator[TrainEvent]:
        """One optimizer step; the same one again, in smaller chunks, if memory was full."""
        config, progress = self._config, self._progress
        began = time.perf_counter()
        set_modes(self._clip.model, self._tuning.moved, config)
        numbers, batch = self._next_batch()
        waited = time.perf_counter() - began
        rate = progress.rate_factor * learning_rate(config, progress.step, self.steps)
        set_learning_rate(self._optimizer, rate)
        gradients = yield from self._gradients.backward(batch, progress, self._epoch)
        self._tuning.gather()
        parameters = list(self._tuning.parameters.values())
        pauses = Pauses(self._pause)
        norm_on_device = clip_gradients(parameters, config.clip_norm, pauses)
        told = torch.stack(
            [
                gradients.loss.float(),
                norm_on_device.float(),
                self._clip.model.logit_scale.detach().float().exp().mean(),
            ]
        )
        loss, norm, scale = told.tolist()  # the only time that a step waits for the device
        progress.step += 1
        if not (math.isfinite(loss) and math.isfinite(norm)):
            yield from self._skip(loss, norm, batch, gradients)
            return
        progress.in_a_row = 0
        step(self._optimizer, parameters, pauses)
        clamp_log_scale(self._clip.model.logit_scale)
        self._tuning.apply()
        if self._average is not None:
            self._average.update(pauses)
        progress.loss_sum += loss
        progress.losses += 1
        yield Step(
            step=progress.step,
            steps=self.steps,
            epoch=self._epoch + 1,
            epochs=self.epochs,
            loss=loss,
            learning_rate=rate,
            logit_scale=scale,
            grad_norm=norm,
            samples_per_second=len(numbers) / (time.perf_counter() - began),
            data_wait_s=waited,
            chunk_size=progress.chunk_size,
            skipped=progress.skipped,
        )
        pauses.end()

    def _encode_locked(self) -> Iterator[TrainEvent]:
        """What no step changes is computed ahead, if the steps come by all of it."""
        if not self._progress.step < self.steps >= self._an_epoch:
            return
        if self._towers.trains_image and self._towers.trains_text:
            return
        set_modes(self._clip.model, self._tuning.moved, self._config)
        yield from self._told(
            self._locked.encode(self._set.distinct_images, self._set.distinct_texts)
        )
        if self._locked.images is not None:
            self._set.forget_pixels()

    def _mine(self) -> Iterator[TrainEvent]:
        """Looks for hard negatives, if it is time."""
        epoch = self._progress.step // self._an_epoch
        due = None if self._miner is None else self._miner.due(epoch)
        if self._miner is None or due is None:
            return
        self._clip.model.eval()
        mined = yield from self._told(self._miner.mine(due))
        yield NegativesMined(epoch=epoch + 1, pairs=mined.pairs)

    def _told(self, work: Generator[object, None, T]) -> Generator[TrainEvent, None, T]:
        """Does some work, in whose pauses others may use the device."""
        while True:
            try:
                next(work)
            except StopIteration as end:
                value: T = end.value
                return value
            yield Chunk(step=self._progress.step + 1)

    def _next_batch(self) -> tuple[NDArray[np.int64], Batch]:
        """The batch of the step that comes; the one after it is decoded meanwhile."""
        epoch, place = divmod(self._progress.step, self._an_epoch)
        if epoch != self._epoch or self._captions is None:
            self._batches = self._set.batches(self._config, epoch)
            self._captions = self._set.captions(self._config.seed, epoch)
            self._epoch = epoch
        numbers = self._batches[place]
        images, texts = self._locked.images, self._locked.texts
        batch = self._set.batch(numbers, self._captions, image_features=images, text_features=texts)
        last = place + 1 == len(self._batches)
        self._set.prefetch(NOTHING if last or images is not None else self._batches[place + 1])
        return numbers, replace(batch, tokens=self._towers.shorten(batch.tokens))

    def _skip(
        self, loss: float, norm: float, batch: Batch, gradients: Gradients
    ) -> Iterator[TrainEvent]:
        """A step that was not finite; the third in a row goes back to the last good state."""
        progress = self._progress
        progress.skipped += 1
        progress.in_a_row += 1
        samples = self._suspects(batch, gradients)
        yield SkippedStep(
            step=progress.step,
            loss=loss,
            grad_norm=norm,
            in_a_row=progress.in_a_row,
            samples=samples,
        )
        if progress.in_a_row < MAX_SKIPPED_STEPS:
            return
        good = self._last_good() if progress.step > progress.diverged_at else None
        if good is None:
            raise TrainingDiverged(
                f"{progress.in_a_row} steps in a row were not finite, the last was "
                f"{progress.step}: loss {loss}, gradient norm {norm}; look at the images "
                f"{', '.join(samples)} and their texts, or try a lower learning_rate"
            )
        self.restore(good)
        now = self._progress
        now.rate_factor, now.in_a_row = progress.rate_factor / 2, 0
        now.diverged_at, now.skipped = progress.step, progress.skipped
        now.chunk_size = progress.chunk_size
        yield RolledBack(step=now.step, from_step=progress.step, rate_factor=now.rate_factor)

    def _suspects(self, batch: Batch, gradients: Gradients) -> tuple[str, ...]:
        """Keys of images of which something is not finite by itself; of some of all, if none."""
        bad = ~torch.isfinite(gradients.image).all(dim=1).cpu()
        bad[: batch.pairs] |= ~torch.isfinite(gradients.text[: batch.pairs]).all(dim=1).cpu()
        numbers = batch.image_keys[0][bad] if bad.any() else batch.image_keys[0]
        return tuple(self._set.name(int(number)) for number in numbers[:NAMED])
