"""The optimizer with the parameter groups of CLIP, and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from hotclip_server.training.config import TrainConfig
from hotclip_server.training.selection import LOGIT_PARAMETERS, layer_rates

LOGIT_SCALE_RATE = 0.1  # the temperature learns ten times slower than the towers


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], config: TrainConfig
) -> torch.optim.Optimizer:
    """Parameters in groups, each of which carries `rate`, its share of the learning rate.

    Fused: one pass over the memory of a parameter instead of a dozen."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    rates = layer_rates(parameters, config.decay)
    for name, parameter in parameters.items():
        logit = name in LOGIT_PARAMETERS
        decay = 0.0 if logit or parameter.ndim < 2 else config.weight_decay
        rate = LOGIT_SCALE_RATE if logit else rates[name]
        groups.setdefault((decay, rate), []).append(parameter)
    found = [
        {"params": members, "weight_decay": decay, "rate": rate}
        for (decay, rate), members in groups.items()
    ]
    betas = (config.beta1, config.beta2)
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(found, lr=config.rate, betas=betas, fused=True)
        case "adam":
            return torch.optim.Adam(found, lr=config.rate, betas=betas, fused=True)
        case "sgd":
            return torch.optim.SGD(found, lr=config.rate, momentum=config.momentum)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Rate of step 0 ≤ `step` < `steps`: linear warm-up from above 0, then the scheduler."""
    warmup = min(steps, math.ceil(config.warmup * steps))
    if step < warmup:
        return config.rate * (step + 1) / warmup
    return config.rate * _left(config, (step - warmup) / max(1, steps - warmup))


def _left(config: TrainConfig, done: float) -> float:
    """Share of the peak where the share `done` < 1 of the steps after the warm-up is behind."""
    match config.scheduler:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "cosine_with_restarts":
            return 0.5 * (1 + math.cos(math.pi * (config.scheduler_cycles * done % 1)))
        case "linear":
            return 1 - done
        case "polynomial":
            return float((1 - done) ** config.scheduler_power)
        case "constant":
            return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
