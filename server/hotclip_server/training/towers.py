"""Features of images and texts as a run trains them: modes, precision and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from hotclip_server.training.clip import Clip
from hotclip_server.training.config import TrainConfig


class Towers:
    """Both towers of one run. Rows are independent of each other, so a batch may come in chunks.

    What is not trained gives features without a graph.
    """

    def __init__(self, clip: Clip, config: TrainConfig) -> None:
        self._clip = clip
        self._config = config

    def image(self, pixels: Tensor) -> Tensor:
        """[n, width] features, not normalised, of [n, 3, h, w] float in 0..1."""
        with self._arithmetic(), torch.set_grad_enabled(_grad(self._config.locks_image)):
            return self._clip.model.encode_image(self._clip.normalise(pixels))

    def text(self, tokens: Tensor) -> Tensor:
        """[n, width] features, not normalised, of [n, context] int64."""
        with self._arithmetic(), torch.set_grad_enabled(_grad(self._config.lock_text)):
            return self._clip.model.encode_text(tokens.to(self._clip.device))

    def _arithmetic(self) -> torch.autocast:
        bf16 = self._config.precision == "bf16"
        return torch.autocast(self._clip.device.type, torch.bfloat16, enabled=bf16)


def _grad(locked: bool) -> bool:
    """A caller that wants no gradients at all gets none."""
    return torch.is_grad_enabled() and not locked
