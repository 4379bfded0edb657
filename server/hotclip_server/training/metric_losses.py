"""Losses of pytorch-metric-learning on the images and texts of a batch, by class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor

from hotclip_server.training.config import MetricLossConfig
from hotclip_server.training.dataset import TEXT, classes_of
from hotclip_server.training.metric_names import (
    METRIC_LOSSES,
    METRIC_MINERS,
    Number,
    Option,
    Options,
)


class MetricLoss:
    """Images and texts are items of one space: so their towers stay aligned."""

    def __init__(self, config: MetricLossConfig) -> None:
        known = METRIC_LOSSES[config.name]
        loss = getattr(losses, config.name)(**_arguments(config.options, known))
        self._loss: Callable[..., Tensor] = loss
        self._miner: Callable[[Tensor, Tensor], Any] | None = None
        if config.miner:
            options = _arguments(config.miner_options, METRIC_MINERS[config.miner])
            self._miner = getattr(miners, config.miner)(**options)

    def __call__(self, image: Tensor, text: Tensor, keys: Tensor) -> Tensor:
        """The loss, a scalar.

        `image` and `text` are [n, dim], unit norm, pairs row by row; `keys` is [4, n] int64 as in
        a batch. A text that several rows have is one item.
        """
        classes = classes_of(keys)
        first = _first_of_each(keys[TEXT])
        items = torch.cat([image, text[first]])
        labels = torch.cat([classes, classes[first]])
        if self._miner is None:
            return self._loss(items, labels)
        return self._loss(items, labels, self._miner(items, labels))


def _first_of_each(numbers: Tensor) -> Tensor:
    """Places of the first of all equal numbers."""
    same = numbers[:, None] == numbers[None, :]
    earlier = torch.ones_like(same).tril(diagonal=-1)
    return (~(same & earlier).any(dim=1)).nonzero()[:, 0]


def _arguments(given: Mapping[str, Option], known: Options) -> dict[str, Option]:
    """Numbers come as floats, whatever they count."""

    def value(name: str, option: Option) -> Option:
        kind = known[name]
        return int(option) if isinstance(kind, Number) and kind.whole else option

    return {name: value(name, option) for name, option in given.items()}
