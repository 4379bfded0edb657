"""Which images a step sees, and with which caption: pure functions of seed and epoch.

Nothing is remembered between epochs, so a run resumes at any step without replaying.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ORDER, _CAPTION, _STEP, _SAMPLE = 0, 1, 2, 3  # one random stream for each purpose


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Steps of one epoch; none of them holds fewer than half a batch, unless it is the only one."""
    return -(-images // batch_size)


def epoch_batches(images: int, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """All image numbers in a random order, cut into nearly equal batches of at most batch_size."""
    order = np.random.default_rng([seed, epoch, _ORDER]).permutation(images)
    return list(np.array_split(order.astype(np.int64), batches_per_epoch(images, batch_size)))


def epoch_captions(counts: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """For each image the number of the caption it has in this epoch, uniform below its count."""
    uniform = np.random.default_rng([seed, epoch, _CAPTION]).random(len(counts))
    return np.minimum((uniform * counts).astype(np.int64), counts - 1)


def step_seed(seed: int, step: int) -> int:
    """Seed of the dropout of one step, below 2**62."""
    return int(np.random.SeedSequence([seed, step, _STEP]).generate_state(1, np.uint64)[0] >> 2)


def sample_draws(
    samples: NDArray[np.int64], seed: int, epoch: int, count: int
) -> NDArray[np.float32]:
    """[n, count] uniform in [0, 1): what augments these images in this epoch, whatever else is
    in their batch."""
    rows = [
        np.random.default_rng([seed, epoch, int(sample), _SAMPLE]).random(count, np.float32)
        for sample in samples
    ]
    return np.stack(rows)
