"""What a run minimises: one scalar from the features of a whole batch.

The trainer computes features, in one go or in chunks, and calls the objective once a step. So
normalisation, scale, bias, positives and targets are here and nowhere else, and the gradient of
the scale is that of one batch however it was cut.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hotclip_server.training.clip import ClipModule
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.dataset import Batch
from hotclip_server.training.losses import info_nce, positive_mask


class Objective:
    """Calculates in fp32, or in fp64 if the features are; scale and bias are the model's own."""

    def __init__(self, model: ClipModule, config: TrainConfig) -> None:
        self._model = model
        self._config = config

    def __call__(self, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        """The loss, a scalar with its graph.

        `image` is [p, width] and `text` [q, width], as `Towers` gives them for all images and all
        texts of `batch`, not normalised, in the order of the batch.
        """
        image, text = _unit(image), _unit(text)
        positives = positive_mask(
            batch.image_keys.to(image.device), batch.text_keys.to(text.device)
        )
        return info_nce(image, text, self._model.logit_scale.to(image.dtype), positives)


def _unit(features: Tensor) -> Tensor:
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return nn.functional.normalize(wide, dim=-1)
