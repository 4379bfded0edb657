"""What is wrong with a training configuration: values out of range, and contradictions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import get_args

from hotclip_server.training import config as names
from hotclip_server.training.config import MetricLossConfig, MiningConfig, TrainConfig
from hotclip_server.training.errors import FieldViolation
from hotclip_server.training.metric_names import METRIC_LOSSES, METRIC_MINERS, option_problems

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("epochs", 1, 100_000),
    ("batch_size", 2, 1_000_000),
    ("chunk_size", 0, 1_000_000),
    ("warmup", 0, 1),
    ("scheduler_cycles", 1, 100),
    ("weight_decay", 0, 10),
    ("beta1", 0, 0.99999),
    ("beta2", 0, 0.999999),
    ("momentum", 0, 0.99999),
    ("ema", 0, 1),
    ("negatives", 0, 16),
    ("preserve", 0, 1000),
    ("freeze_layers", 0, 1000),
    ("seed", 0, 2**63 - 1),
    ("lora.rank", 1, 64),
    ("augment.shift", 0, 0.5),
    ("augment.rotate", 0, 180),
    *((f"augment.{name}", 0, 1) for name in ("brightness", "grey", "hue", "outline")),
    *((f"augment.{name}", 0, 1) for name in ("line_art", "blur")),
)
_ABOVE_0: tuple[tuple[str, float], ...] = (
    ("learning_rate", 1),
    ("scheduler_power", 10),
    ("layer_decay", 1),
    ("clip_norm", math.inf),
    ("lora.alpha", 1024),
)


def violations(config: TrainConfig) -> Iterator[FieldViolation]:
    """Each bad field once at least."""
    for path, low, high in _RANGES:
        value = _value(config, path)
        if not (math.isfinite(value) and low <= value <= high):
            reason = f"must be between {low:g} and {high:g}, got {value!r}"
            yield FieldViolation(path, reason)
    if config.max_steps is not None and not 1 <= config.max_steps <= 100_000_000:
        reason = f"must be between 1 and 100000000, got {config.max_steps!r}"
        yield FieldViolation("max_steps", reason)
    for path, most in _ABOVE_0:
        given = _value(config, path)
        if given is not None and not (math.isfinite(given) and 0 < given <= most):
            bound = "" if math.isinf(most) else f" and at most {most:g}"
            yield FieldViolation(path, f"must be above 0{bound}, got {given!r}")
    low, high = config.augment.crop
    if not 0.1 <= low <= high <= 4:
        yield FieldViolation("augment.crop", "must be ordered and between 0.1 and 4")
    yield from _choices(config)
    yield from _methods(config)
    yield from _losses(config)


def _value(config: TrainConfig, path: str) -> float:
    found: float = config  # type: ignore[assignment]  # walks down
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _choices(config: TrainConfig) -> Iterator[FieldViolation]:
    for path, allowed in (
        ("scheduler", names.Scheduler),
        ("optimizer", names.OptimizerName),
        ("precision", names.Precision),
        ("loss", names.Loss),
        ("positives", names.Positives),
        ("method", names.Method),
    ):
        known = get_args(allowed)
        value = getattr(config, path)
        if value not in known:
            yield FieldViolation(path, f"must be one of {', '.join(known)}, got {value!r}")
    matrices = get_args(names.Matrix)
    for place, target in enumerate(config.lora.targets):
        if target not in matrices:
            reason = f"must be one of {', '.join(matrices)}, got {target!r}"
            yield FieldViolation(f"lora.targets[{place}]", reason)
    if not config.lora.targets:
        yield FieldViolation("lora.targets", "is empty, so nothing would be trained")


def _methods(config: TrainConfig) -> Iterator[FieldViolation]:
    if config.locks_image and config.lock_text:
        what = "lock_image is set" if config.lock_image else "the method lit locks the image tower"
        yield FieldViolation("lock_text", f"{what} too, so nothing would be trained")
    if config.freeze_layers and config.method == "projection":
        yield FieldViolation("freeze_layers", "the method projection trains no layers anyway")
    if config.layer_decay not in (None, 1) and config.method in ("lora", "projection"):
        reason = f"the method {config.method} has one rate for all that it trains"
        yield FieldViolation("layer_decay", reason)
    if config.train_batch_norm and config.method != "full":
        yield FieldViolation("train_batch_norm", f"the method {config.method} trains none")


def _losses(config: TrainConfig) -> Iterator[FieldViolation]:
    if (config.loss == "metric") != (config.metric_loss is not None):
        reason = "is needed by the loss metric, and of use with it alone"
        yield FieldViolation("metric_loss", reason)
    if config.metric_loss is not None:
        yield from _metric_loss(config.metric_loss, config.batch_size)
    if config.mining is not None:
        yield from _mining(config.mining)
        if config.loss == "metric":
            yield FieldViolation("mining", "losses of classes know of no single pairs")


def _mining(mining: MiningConfig) -> Iterator[FieldViolation]:
    for name, low, high in (("pool", 1, 64), ("count", 1, 16), ("every", 1, 1000)):
        value = getattr(mining, name)
        if not low <= value <= high:
            yield FieldViolation(f"mining.{name}", f"must be in {low} to {high}, got {value}")
    if mining.count > mining.pool:
        reason = f"must be at most the pool of {mining.pool}, got {mining.count}"
        yield FieldViolation("mining.count", reason)
    if not 0 < mining.ceiling <= 1:
        reason = f"must be above 0 and at most 1, got {mining.ceiling!r}"
        yield FieldViolation("mining.ceiling", reason)


def _metric_loss(metric: MetricLossConfig, batch_size: int) -> Iterator[FieldViolation]:
    for kind, name, options, known in (
        ("name", metric.name, metric.options, METRIC_LOSSES),
        ("miner", metric.miner, metric.miner_options, METRIC_MINERS),
    ):
        path = f"metric_loss.{'options' if kind == 'name' else 'miner_options'}"
        if kind == "miner" and not name:
            if options:
                yield FieldViolation(path, "there is no miner that they are for")
        elif name not in known:
            reason = f"must be one of {', '.join(known)}, got {name!r}"
            yield FieldViolation(f"metric_loss.{kind}", reason)
        else:
            for at, reason in option_problems(options, known[name], path):
                yield FieldViolation(at, reason)
    count = metric.items_per_class
    if not 1 <= count <= 256 or batch_size % count:
        reason = f"must be in 1 to 256 and divide batch_size, got {count}"
        yield FieldViolation("metric_loss.items_per_class", reason)
