"""The loss of pairs that are not trained on, from the vectors that their evaluation made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotclip_server.training.losses import equal_targets, info_nce

Array = NDArray[np.float64]


def held_out_loss(
    images: Array,
    texts: Array,
    log_scale: Tensor,
    relevant: Callable[[int], NDArray[np.bool_]],
    *,
    batch_size: int,
) -> float:
    """Mean over all pairs of symmetric InfoNCE (see `losses`) in batches of `batch_size`.

    A batch of another size has another loss, so this one compares with the training loss if it
    is measured in batches of the same size. The order is shuffled, and the same every time.

    Args:
        images: [n, dim], unit norm; row i belongs to row i of `texts`.
        texts: [n, dim], unit norm.
        log_scale: The model's own, of any shape: its mean counts.
        relevant: [n] of a row of `texts`: which rows of `images` are right for it.
    """
    scale = log_scale.detach().double().mean().cpu()
    order = np.random.default_rng(0).permutation(len(images))
    total = 0.0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        positives = np.stack([relevant(int(row))[rows] > 0 for row in rows], axis=1)
        np.fill_diagonal(positives, True)  # a pair with the score 0 is one too
        loss = info_nce(
            torch.from_numpy(images[rows]),
            torch.from_numpy(texts[rows]),
            scale,
            equal_targets(torch.from_numpy(positives)),
        )
        total += float(loss) * len(rows)
    return total / len(order)
