"""Which parts of a model are in training mode."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hotclip_server.training.clip import ClipModule
from hotclip_server.training.config import TrainConfig


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
