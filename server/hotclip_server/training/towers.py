"""Features of images and texts as a run trains them: precision, gradients, length of texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from hotclip_server.encoding.text_tower import TextTower, Trim
from hotclip_server.training.clip import Clip
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.layers import Layers, row_vectors
from hotclip_server.training.losses import feature_distance
from hotclip_server.training.selection import is_image, is_text


class Towers:
    """Both towers of one run. Rows are independent of each other, so a batch may come in chunks.

    What is not trained gives features without a graph. With `preserve` each row ends with one
    number more: how far it is from what the base makes of it; see `feature_distance`. So the model
    must hold the base's weights when this is made.

    Args:
        config: Without "auto"; see `TrainConfig.resolved`.
    """

    def __init__(self, clip: Clip, config: TrainConfig) -> None:
        self.trains_image = not config.locks_image
        self.trains_text = not config.lock_text
        self.device = clip.device
        self._preserves = config.preserve > 0
        self._own = _Passes(clip, config)
        self._base = self._own
        if self._preserves:
            model = deepcopy(clip.model).eval().requires_grad_(False)
            self._base = _Passes(replace(clip, model=model), config)

    def image(self, pixels: Tensor) -> Tensor:
        """[n, width] features, not normalised, of [n, 3, h, w] float in 0..1; with `preserve`
        [n, width + 1]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_image):
            found = self._own.image(pixels)
        if not self._preserves:
            return found[-1]
        with torch.no_grad():
            base = self._base.image(pixels) if self.trains_image else found
        return _with_distance(found, base)

    def plain(self, made: Tensor) -> Tensor:
        """[n, width] features of what `image` or `text` gave."""
        return made[:, :-1] if self._preserves else made

    def shorten(self, tokens: Tensor) -> Tensor:
        """[n, context] int64 cut to the longest text of all, where no feature depends on the
        rest: [n, length]."""
        tower = self._own.text_tower(tokens)
        self._base.text_tower(tokens)  # `text` sees shortened texts alone
        if tower.trim is Trim.CAUSAL:
            return tokens[:, : int(tower.pooled(tokens).max()) + 1]
        if tower.trim is Trim.MASKED:
            used = tokens.ne(tower.masked_id or 0).any(dim=0).nonzero()
            return tokens[:, : int(used.max()) + 1 if len(used) else 1]
        return tokens

    def text(self, tokens: Tensor) -> Tensor:
        """[n, width] features, not normalised, of [n, length] int64 that `shorten` cut; with
        `preserve` [n, width + 1]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_text):
            found = self._own.text(tokens)
        if not self._preserves:
            return found[-1]
        with torch.no_grad():
            base = self._base.text(tokens) if self.trains_text else found
        return _with_distance(found, base)


class _Passes:
    """Passes of one model. What they give are its features, with `preserve` after one vector
    [n, width of the block] of each block."""

    def __init__(self, clip: Clip, config: TrainConfig) -> None:
        self._clip = clip
        self._bf16 = config.precision == "bf16"
        watches = config.preserve > 0
        self._image_layers = Layers(clip.model, is_image) if watches else None
        self._text_layers = Layers(clip.model, is_text) if watches else None
        self._text: TextTower | None = None

    def image(self, pixels: Tensor) -> list[Tensor]:
        with self._arithmetic(), _watched(self._image_layers) as given:
            features = self._clip.model.encode_image(self._clip.normalise(pixels))
        return [*map(row_vectors, given), features]

    def text(self, tokens: Tensor) -> list[Tensor]:
        tower = self.text_tower(tokens)
        with self._arithmetic(), _watched(self._text_layers) as given:
            features = tower.run(tokens.to(self._clip.device))
        used = self._used(tower, tokens) if given else None
        return [*(row_vectors(one, used) for one in given), features]

    def text_tower(self, tokens: Tensor) -> TextTower:
        """Made for the context of the first `tokens`, [n, context]."""
        if self._text is None:
            self._text = TextTower(self._clip.model, tokens.shape[1])
        return self._text

    def _used(self, tower: TextTower, tokens: Tensor) -> Tensor | None:
        """[n, length] bool on the device: tokens that a feature depends on; None: all."""
        tokens = tokens.to(self._clip.device)
        if tower.trim is Trim.CAUSAL:
            places = torch.arange(tokens.shape[1], device=tokens.device)
            return places <= tower.pooled(tokens)[:, None]
        if tower.trim is Trim.MASKED:
            return tokens.ne(tower.masked_id or 0)
        return None

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self._clip.device.type, torch.bfloat16, enabled=self._bf16)


@contextmanager
def _watched(layers: Layers | None) -> Iterator[list[Tensor]]:
    if layers is None:
        yield []
        return
    with layers.watched() as given:
        yield given


def _with_distance(found: list[Tensor], base: list[Tensor]) -> Tensor:
    """[n, width + 1]."""
    return torch.cat([found[-1], feature_distance(found, base)[:, None]], dim=1)
