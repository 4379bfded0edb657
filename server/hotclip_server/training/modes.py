"""Which parts of a model are in training mode, and how its memory is laid out."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hotclip_server.training.clip import ClipModule
from hotclip_server.training.config import TrainConfig


def lay_out(model: nn.Module) -> None:
    """Convolutions are faster with channels last, where there are many of them."""
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        model.to(memory_format=torch.channels_last)


def set_modes(model: ClipModule, parameters: dict[str, nn.Parameter], config: TrainConfig) -> None:
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
