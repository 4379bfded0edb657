"""Features of images and texts as a run trains them: precision, gradients, length of texts."""

from __future__ import annotations

import torch
from torch import Tensor

from hotclip_server.encoding.text_tower import TextTower, Trim
from hotclip_server.training.clip import Clip
from hotclip_server.training.config import TrainConfig


class Towers:
    """Both towers of one run. Rows are independent of each other, so a batch may come in chunks.

    What is not trained gives features without a graph.
    """

    def __init__(self, clip: Clip, config: TrainConfig) -> None:
        self._clip = clip
        self._config = config
        self._text: TextTower | None = None
        self.trains_image = not config.locks_image
        self.trains_text = not config.lock_text

    def image(self, pixels: Tensor) -> Tensor:
        """[n, width] features, not normalised, of [n, 3, h, w] float in 0..1."""
        with self._arithmetic(), torch.set_grad_enabled(_grad(self.trains_image)):
            return self._clip.model.encode_image(self._clip.normalise(pixels))

    def shorten(self, tokens: Tensor) -> Tensor:
        """[n, context] int64 cut to the longest text of all, where no feature depends on the
        rest: [n, length]."""
        if self._text is None:
            self._text = TextTower(self._clip.model, tokens.shape[1])
        tower = self._text
        if tower.trim is Trim.CAUSAL:
            return tokens[:, : int(tower.pooled(tokens).max()) + 1]
        if tower.trim is Trim.MASKED:
            used = tokens.ne(tower.masked_id or 0).any(dim=0).nonzero()
            return tokens[:, : int(used.max()) + 1 if len(used) else 1]
        return tokens

    def text(self, tokens: Tensor) -> Tensor:
        """[n, width] features, not normalised, of [n, length] int64 that `shorten` cut."""
        if self._text is None:
            self._text = TextTower(self._clip.model, tokens.shape[1])
        with self._arithmetic(), torch.set_grad_enabled(_grad(self.trains_text)):
            return self._text.run(tokens.to(self._clip.device))

    def _arithmetic(self) -> torch.autocast:
        bf16 = self._config.precision == "bf16"
        return torch.autocast(self._clip.device.type, torch.bfloat16, enabled=bf16)


def _grad(trained: bool) -> bool:
    """A caller that wants no gradients at all gets none."""
    return torch.is_grad_enabled() and trained
