"""Symmetric InfoNCE with several positives.

Radford et al. 2021 (CLIP), figure 3, with the soft targets of supervised contrastive learning
(Khosla et al. 2020): in a batch every item of the same text, image or group is a positive, each
with weight 1/|P|; one-hot targets would push duplicates apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(100.0)


def positive_mask(images: Tensor, texts: Tensor) -> Tensor:
    """[p, q] bool: true where any key of an image and a text agree, and where row meets column.

    `images` is [keys, p] and `texts` [keys, q], both int64. A negative key agrees with nothing, so
    it stands for "no group".
    """
    mask = ((images[:, :, None] == texts[:, None, :]) & (images >= 0)[:, :, None]).any(dim=0)
    return mask | torch.eye(*mask.shape, dtype=torch.bool, device=mask.device)


def info_nce(image: Tensor, text: Tensor, log_scale: Tensor, positives: Tensor) -> Tensor:
    """Mean of the image-to-text and text-to-image cross entropies, a scalar.

    `image` and `text` are [n, dim], unit norm, row i of both belonging together; `log_scale` is a
    scalar or [1]; `positives` is [n, n] bool with a true diagonal.
    """
    logits = log_scale.exp() * image @ text.T  # [n, n], rows are images
    weight = positives.to(logits.dtype)
    of_image = weight / weight.sum(dim=1, keepdim=True)
    of_text = weight / weight.sum(dim=0, keepdim=True)
    image_to_text = -(of_image * logits.log_softmax(dim=1)).sum(dim=1).mean()
    text_to_image = -(of_text * logits.log_softmax(dim=0)).sum(dim=0).mean()
    return (image_to_text + text_to_image) / 2


@torch.no_grad()
def clamp_log_scale(log_scale: Tensor) -> None:
    """Keep the learnt log-scale within [0, ln 100], in place (CLIP, section 2.5)."""
    log_scale.clamp_(0.0, MAX_LOG_SCALE)
