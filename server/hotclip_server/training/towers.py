"""Features of images and texts as a run trains them: precision, gradients, length of texts."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from hotclip_server.encoding.text_tower import TextTower, Trim
from hotclip_server.training.clip import Clip
from hotclip_server.training.config import TrainConfig


class Towers:
    """Both towers of one run. Rows are independent of each other, so a batch may come in chunks.

    What is not trained gives features without a graph. With `preserve` the features of the base
    follow those of the model in each row; so the model must hold the base's weights when this is
    made.

    Args:
        config: Without "auto"; see `TrainConfig.resolved`.
    """

    def __init__(self, clip: Clip, config: TrainConfig) -> None:
        self._clip = clip
        self._config = config
        self._text: TextTower | None = None
        self.trains_image = not config.locks_image
        self.trains_text = not config.lock_text
        self._base: Towers | None = None
        if config.preserve > 0:
            model = deepcopy(clip.model).eval().requires_grad_(False)
            self._base = Towers(replace(clip, model=model), replace(config, preserve=0.0))

    def image(self, pixels: Tensor) -> Tensor:
        """[n, width] features, not normalised, of [n, 3, h, w] float in 0..1."""
        with self._arithmetic(), torch.set_grad_enabled(_grad(self.trains_image)):
            features = self._clip.model.encode_image(self._clip.normalise(pixels))
        if self._base is None:
            return features
        with torch.no_grad():
            base = self._base.image(pixels)
        return torch.cat([features, base], dim=1)

    def shorten(self, tokens: Tensor) -> Tensor:
        """[n, context] int64 cut to the longest text of all, where no feature depends on the
        rest: [n, length]."""
        tower = self._text_tower(tokens)
        if tower.trim is Trim.CAUSAL:
            return tokens[:, : int(tower.pooled(tokens).max()) + 1]
        if tower.trim is Trim.MASKED:
            used = tokens.ne(tower.masked_id or 0).any(dim=0).nonzero()
            return tokens[:, : int(used.max()) + 1 if len(used) else 1]
        return tokens

    def text(self, tokens: Tensor) -> Tensor:
        """[n, width] features, not normalised, of [n, length] int64 that `shorten` cut."""
        with self._arithmetic(), torch.set_grad_enabled(_grad(self.trains_text)):
            features = self._text_tower(tokens).run(tokens.to(self._clip.device))
        if self._base is None:
            return features
        with torch.no_grad():
            base = self._base.text(tokens)
        return torch.cat([features, base], dim=1)

    def _text_tower(self, tokens: Tensor) -> TextTower:
        if self._text is None:
            self._text = TextTower(self._clip.model, tokens.shape[1])
            if self._base is not None:
                self._base._text_tower(tokens)  # which sees shortened texts alone
        return self._text

    def _arithmetic(self) -> torch.autocast:
        bf16 = self._config.precision == "bf16"
        return torch.autocast(self._clip.device.type, torch.bfloat16, enabled=bf16)


def _grad(trained: bool) -> bool:
    """A caller that wants no gradients at all gets none."""
    return torch.is_grad_enabled() and trained
