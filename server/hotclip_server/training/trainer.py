"""Contrastive training as a generator of steps.

The caller drives it: between two steps it may pause, evaluate, write a checkpoint or stop, and
nothing happens that it did not ask for. The model is trained in place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hotclip_server.training.augment import augment
from hotclip_server.training.average import WeightAverage
from hotclip_server.training.clip import Clip, ClipModule
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.dataset import Batch, TrainingSet
from hotclip_server.training.errors import TrainingDiverged
from hotclip_server.training.events import EpochEnd, SkippedStep, Started, Step, TrainEvent
from hotclip_server.training.losses import clamp_log_scale
from hotclip_server.training.objective import Objective
from hotclip_server.training.optim import learning_rate, make_optimizer, set_learning_rate
from hotclip_server.training.pairs import PairSet
from hotclip_server.training.sampler import batches_per_epoch, epoch_batches, step_seed
from hotclip_server.training.towers import Towers
from hotclip_server.training.tuning import tuning_of

Drawing = Callable[[], AbstractContextManager[None]]
"""Entered around operations that may draw random numbers on the device."""

MAX_SKIPPED_STEPS = 3
NOTHING = np.zeros(0, dtype=np.int64)


def train(
    clip: Clip,
    data: PairSet,
    config: TrainConfig,
    *,
    image_budget_bytes: int = 2 << 30,
    drawing: Drawing = nullcontext,
) -> Iterator[TrainEvent]:
    """Train `clip.model` in place on `data`, yielding what happened after each step.

    After the last event the model holds the weights to keep (the moving average, if configured)
    in evaluation mode with no parameter requiring gradients. Closing the generator earlier leaves
    the weights of the last step.

    Raises InvalidPairs if an image can't be decoded or fewer than two are there, and
    TrainingDiverged if three steps in a row were not finite; the weights are finite even then.
    """
    model = clip.model
    training_set = TrainingSet(clip, data, budget_bytes=image_budget_bytes)
    config = config.resolved(
        pairs=training_set.pairs,
        logit_bias=getattr(model, "logit_bias", None) is not None,
        device=clip.device.type,
    )
    an_epoch = batches_per_epoch(training_set.images, config.batch_size)
    steps = config.max_steps or config.epochs * an_epoch
    epochs = -(-steps // an_epoch)
    towers, objective = Towers(clip, config), Objective(model, config)
    tuning = tuning_of(model, config)
    parameters = tuning.parameters
    optimizer = make_optimizer(parameters, config)
    average = WeightAverage(tuning, config.ema * steps) if config.ema > 0 else None
    yield Started(steps=steps, epochs=epochs, images=training_set.images, pairs=training_set.pairs)

    try:
        step, skipped = 0, 0
        for epoch in range(epochs):
            captions = training_set.captions(config.seed, epoch)
            losses: list[float] = []
            batches = epoch_batches(training_set.images, config.batch_size, config.seed, epoch)
            for numbers, following in pairwise([*batches, NOTHING]):
                if step == steps:
                    break
                began = time.perf_counter()
                _set_modes(model, tuning.moved, config)
                batch = training_set.batch(numbers, captions)
                waited = time.perf_counter() - began
                training_set.prefetch(following)  # decoded while this step runs
                rate = learning_rate(config, step, steps)
                set_learning_rate(optimizer, rate)
                with drawing():
                    loss = batch_loss(
                        towers, objective, batch, config, step_seed(config.seed, step)
                    )
                model.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                tuning.gather()
                norm = float(nn.utils.clip_grad_norm_(parameters.values(), config.clip_norm))
                step += 1
                value = float(loss.detach())
                if not (math.isfinite(value) and math.isfinite(norm)):
                    skipped += 1
                    yield SkippedStep(step=step, loss=value, grad_norm=norm, in_a_row=skipped)
                    if skipped == MAX_SKIPPED_STEPS:
                        raise TrainingDiverged(
                            f"{skipped} steps in a row were not finite, the last was {step}: "
                            f"loss {value}, gradient norm {norm}; try a lower learning_rate"
                        )
                    continue
                skipped = 0
                optimizer.step()
                clamp_log_scale(model.logit_scale)
                tuning.apply()
                if average is not None:
                    average.update()
                losses.append(value)
                yield Step(
                    step=step,
                    steps=steps,
                    epoch=epoch + 1,
                    epochs=epochs,
                    loss=value,
                    learning_rate=rate,
                    logit_scale=float(model.logit_scale.detach().exp().mean()),
                    grad_norm=norm,
                    samples_per_second=len(numbers) / (time.perf_counter() - began),
                    data_wait_s=waited,
                )
            if average is not None and step == steps:
                average.swap_in()
            model.eval()
            end = EpochEnd(
                epoch=epoch + 1,
                epochs=epochs,
                step=step,
                steps=steps,
                mean_loss=sum(losses) / len(losses) if losses else math.nan,
            )
            if average is not None and step < steps:
                with average.swapped_in():
                    yield end
            else:
                yield end
    finally:
        model.eval().requires_grad_(False)
        model.zero_grad(set_to_none=True)


def batch_loss(
    towers: Towers, objective: Objective, batch: Batch, config: TrainConfig, seed: int
) -> Tensor:
    """The loss of one batch, a scalar with its graph; `seed` fixes augmentation and dropout."""
    generator = torch.Generator().manual_seed(seed)
    pixels = augment(batch.images.float() / 255, config.augment, generator)
    with torch.random.fork_rng(devices=[], enabled=True):
        torch.manual_seed(seed)  # dropout draws from the global stream
        return objective(towers.image(pixels), towers.text(batch.tokens), batch)


def _set_modes(model: ClipModule, parameters: dict[str, nn.Parameter], config: TrainConfig) -> None:
    """Training mode and gradients where this run trains; BatchNorm and locked towers stay still.

    Done before every step, because the caller may have evaluated the model in between.
    """
    model.train()
    if config.lock_text:
        model.eval()
        model.visual.train()
    if config.locks_image:
        model.visual.eval()
    if not config.train_batch_norm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
