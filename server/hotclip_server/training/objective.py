"""What a run minimises: one scalar from the features of a whole batch.

The trainer computes features, in one go or in chunks, and calls the objective once a step. So
normalisation, scale, bias, positives and targets are here and nowhere else, and the gradient of
the scale is that of one batch however it was cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from hotclip_server.training.clip import ClipModule
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.dataset import Batch
from hotclip_server.training.losses import (
    info_nce,
    sigmoid_loss,
    targets_of,
    unit,
)

if TYPE_CHECKING:
    from hotclip_server.training.metric_losses import MetricLoss


class Objective:
    """Calculates in fp32, or in fp64 if the features are; scale and bias are the model's own.

    Args:
        config: Without "auto"; see `TrainConfig.resolved`.
    """

    def __init__(self, model: ClipModule, config: TrainConfig) -> None:
        self._model = model
        self._config = config
        self._metric: MetricLoss | None = None
        if config.metric_loss is not None:
            # Its library takes seconds to import and no other loss needs it.
            from hotclip_server.training.metric_losses import MetricLoss

            self._metric = MetricLoss(config.metric_loss)

    def __call__(self, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        """The loss, a scalar with its graph.

        `image` is [p, width] and `text` [q, width], as `Towers` gives them for all images and all
        texts of `batch`, not normalised, in the order of the batch; with `preserve` the last
        column is the distance to the base. Nothing is drawn by chance.
        """
        if self._config.preserve <= 0:
            return self._loss(unit(image), unit(text), batch)
        distance = image[:, -1].mean() + text[:, -1].mean()
        loss = self._loss(unit(image[:, :-1]), unit(text[:, :-1]), batch)
        return loss + self._config.preserve * distance

    def _loss(self, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        device, pairs = image.device, batch.pairs
        if self._metric is not None:
            return self._metric(image[:pairs], text[:pairs], batch.text_keys.to(device)[:, :pairs])
        targets = targets_of(
            batch.image_keys.to(device),
            batch.text_keys.to(device),
            batch.scores.to(device, image.dtype),
            self._config.positives,
        )
        scale = self._model.logit_scale.to(image.dtype)
        if self._config.loss == "siglip":
            return sigmoid_loss(image, text, scale, self._bias().to(image.dtype), targets)
        return info_nce(image, text, scale, targets)

    def _bias(self) -> Tensor:
        if self._model.logit_bias is None:
            raise RuntimeError("the sigmoid loss without a bias. This is a bug.")
        return self._model.logit_bias
