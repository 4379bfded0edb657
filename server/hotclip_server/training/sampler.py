"""Which images a step sees, and with which caption: pure functions of seed and epoch.

Nothing is remembered between epochs, so a run resumes at any step without replaying.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# one random stream for each purpose
_ORDER, _CAPTION, _STEP, _SAMPLE, _NEGATIVE, _CLASS = range(6)


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Steps of one epoch; none of them holds fewer than half a batch, unless it is the only one."""
    return -(-images // batch_size)


def epoch_batches(images: int, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """All image numbers in a random order, cut into nearly equal batches of at most batch_size."""
    order = np.random.default_rng([seed, epoch, _ORDER]).permutation(images)
    return list(np.array_split(order.astype(np.int64), batches_per_epoch(images, batch_size)))


def epoch_captions(
    counts: NDArray[np.signedinteger[Any]], seed: int, epoch: int
) -> NDArray[np.int64]:
    """For each image the number of the caption it has in this epoch, uniform below its count."""
    uniform = np.random.default_rng([seed, epoch, _CAPTION]).random(len(counts))
    drawn: NDArray[np.int64] = np.minimum((uniform * counts).astype(np.int64), counts - 1)
    return drawn


def class_batches(
    classes: NDArray[np.int64], batch_size: int, per_class: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """As `epoch_batches`, images of one class `per_class` together as far as there are so many.

    `classes` is the class of each image. Where batches of the same size are cut, some are parted.
    """
    generator = np.random.default_rng([seed, epoch, _CLASS])
    order = generator.permutation(len(classes)).astype(np.int64)
    order = order[np.argsort(classes[order], kind="stable")]  # class by class, shuffled within
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
    together = [
        members[at : at + per_class]
        for members in np.split(order, starts[1:])
        for at in range(0, len(members), per_class)
    ]
    # Whole clumps first, in a random order: remainders would shift the places where batches end.
    shuffled = [together[i] for i in generator.permutation(len(together))]
    shuffled.sort(key=lambda members: len(members) < per_class)
    return list(np.array_split(np.concatenate(shuffled), batches_per_epoch(len(order), batch_size)))


def epoch_negatives(images: int, seed: int, epoch: int) -> NDArray[np.float64]:
    """For each image where in the list of its pair's negatives to begin, a share in [0, 1)."""
    drawn: NDArray[np.float64] = np.random.default_rng([seed, epoch, _NEGATIVE]).random(images)
    return drawn


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
