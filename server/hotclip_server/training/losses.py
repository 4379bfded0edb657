"""Contrastive losses of batches in which several items may belong together.

A batch has p images and q texts; the first n of both are pairs, row by row, and what follows are
images and texts that are wrong for some of them. Symmetric InfoNCE is that of Radford et al. 2021
(CLIP), figure 3; with the positives "share" it has the soft targets of supervised contrastive
learning (Khosla et al. 2020): every item of the same text, image, group or label is a positive,
each with weight 1/|P|. The sigmoid loss is that of Zhai et al. 2023 (SigLIP), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from hotclip_server.training.config import Positives

MAX_LOG_SCALE = math.log(100.0)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What belongs together in a batch."""

    positives: Tensor
    """[p, q] bool; true where an image and a text of the same row meet."""
    ignored: Tensor
    """[p, q] bool: neither positive nor negative."""
    scores: Tensor
    """[n] in 0..1: how much the pair in each of the first rows counts."""


def positive_mask(images: Tensor, texts: Tensor) -> Tensor:
    """[p, q] bool: true where any key of an image and a text agree.

    `images` is [keys, p] and `texts` [keys, q], both int64. A negative key agrees with nothing, so
    it stands for "no group".
    """
    return ((images[:, :, None] == texts[:, None, :]) & (images >= 0)[:, :, None]).any(dim=0)


def targets_of(images: Tensor, texts: Tensor, scores: Tensor, positives: Positives) -> Targets:
    """Targets from the keys of images [keys, p] and texts [keys, q]; `scores` is [n]."""
    known = positive_mask(images, texts)
    own = torch.zeros_like(known)
    own[: len(scores), : len(scores)].fill_diagonal_(True)
    known |= own  # a pair without any key is one
    nothing = torch.zeros_like(known)
    match positives:
        case "share":
            return Targets(positives=known, ignored=nothing, scores=scores)
        case "mask":
            return Targets(positives=own, ignored=known & ~own, scores=scores)
        case "off":
            return Targets(positives=own, ignored=nothing, scores=scores)


def equal_targets(positives: Tensor) -> Targets:
    """Every row is a pair that counts fully; `positives` is [n, n] bool with a true diagonal."""
    return Targets(
        positives=positives,
        ignored=torch.zeros_like(positives),
        scores=torch.ones(len(positives), device=positives.device),
    )


def info_nce(image: Tensor, text: Tensor, log_scale: Tensor, targets: Targets) -> Tensor:
    """Mean of the image-to-text and text-to-image cross entropies of the pairs, a scalar.

    `image` is [p, dim] and `text` [q, dim], unit norm; `log_scale` is a scalar or [1].
    """
    pairs = len(targets.scores)
    logits = (log_scale.exp() * image @ text.T).masked_fill(targets.ignored, -math.inf)
    image_to_text = _cross_entropy(logits[:pairs], targets.positives[:pairs])
    text_to_image = _cross_entropy(logits.T[:pairs], targets.positives.T[:pairs])
    return _mean((image_to_text + text_to_image) / 2, targets.scores)


def sigmoid_loss(
    image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor, targets: Targets
) -> Tensor:
    """Sum over all images and texts of -log sigmoid(±logit), over the number of pairs, a scalar.

    A positive counts as the lesser of the scores of its image and its text. What follows the pairs
    meets the pairs alone: how one wrong image fits another row's wrong text is not known.
    """
    pairs = len(targets.scores)
    logits = log_scale.exp() * image @ text.T + bias
    terms = -logsigmoid(torch.where(targets.positives, logits, -logits))
    scores = logits.new_ones(max(image.shape[0], text.shape[0]))
    scores[:pairs] = targets.scores
    rows, columns = scores[: image.shape[0], None], scores[None, : text.shape[0]]
    weights = torch.where(targets.positives, torch.minimum(rows, columns), 1.0)
    weights = weights.masked_fill(targets.ignored, 0.0)
    weights[pairs:, pairs:] = 0.0
    return (weights * terms).sum() / pairs


def feature_distance(layers: Sequence[Tensor], base: Sequence[Tensor]) -> Tensor:
    """[n]: of each row the squared distance of unit vectors, the mean over several layers.

    The regulariser of LDIFS (Mukhoti et al. 2023, "Fine-tuning can cripple your foundation
    model"), equation 3, on [n, width] vectors of each layer; of unit length, so that no layer
    counts more because its numbers are larger.
    """
    squared = [
        (unit(own) - unit(other)).square().sum(dim=1)
        for own, other in zip(layers, base, strict=True)
    ]
    return torch.stack(squared).mean(dim=0)


def unit(features: Tensor) -> Tensor:
    """Rows of length 1, in fp32 at least."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return normalize(wide, dim=-1)


@torch.no_grad()
def clamp_log_scale(log_scale: Tensor) -> None:
    """Keep the learnt log-scale within [0, ln 100], in place (CLIP, section 2.5)."""
    log_scale.clamp_(0.0, MAX_LOG_SCALE)


def _cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    """[n]: cross entropy of each row with equal weight on each of its positives."""
    share = positives.to(logits.dtype)
    share = share / share.sum(dim=1, keepdim=True)
    likelihood = logits.log_softmax(dim=1)
    return -(share * torch.where(positives, likelihood, 0.0)).sum(dim=1)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; 0 where all weights are."""
    weights = weights.to(values.dtype)
    return (weights * values).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)
