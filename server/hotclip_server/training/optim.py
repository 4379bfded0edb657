"""AdamW with the parameter groups of CLIP, and the course of the learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from hotclip_server.training.config import TrainConfig

LOGIT_SCALE_RATE = 0.1  # the temperature learns ten times slower than the towers
_LOGIT_PARAMETERS = ("logit_scale", "logit_bias")


def is_text_parameter(name: str) -> bool:
    """Whether a parameter of an open_clip model belongs to the text tower."""
    return not name.startswith("visual.") and name not in _LOGIT_PARAMETERS


def trained_parameters(model: nn.Module, config: TrainConfig) -> dict[str, nn.Parameter]:
    """The parameters that this run changes, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not (config.lock_image and name.startswith("visual."))
        and not (config.lock_text and is_text_parameter(name))
    }


def make_optimizer(parameters: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; each group carries `rate`, its share of the learning rate."""
    decayed, plain, logit = [], [], []
    for name, parameter in parameters.items():
        if name in _LOGIT_PARAMETERS:
            logit.append(parameter)
        elif parameter.ndim < 2:
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "rate": 1.0},
        {"params": plain, "weight_decay": 0.0, "rate": 1.0},
        {"params": logit, "weight_decay": 0.0, "rate": LOGIT_SCALE_RATE},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
    )


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Rate of step 0 ≤ `step` < `steps`: linear warm-up from above 0, then the scheduler."""
    warmup = min(steps, math.ceil(config.warmup * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if config.scheduler == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.scheduler == "linear":
        return config.learning_rate * (1 - done)
    return config.learning_rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
