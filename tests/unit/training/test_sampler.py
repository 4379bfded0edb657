from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hotclip_server.training.sampler import (
    batches_per_epoch,
    epoch_batches,
    epoch_captions,
    sample_draws,
    step_seed,
)


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(2, 80), st.integers(0, 2**63 - 1), st.integers(0, 50))
def test_each_image_once_in_nearly_equal_batches(images: int, batch: int, seed: int, epoch: int):
    batches = epoch_batches(images, batch, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(images))
    sizes = [len(numbers) for numbers in batches]
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == batches_per_epoch(images, batch)
    again = epoch_batches(images, batch, seed, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_order_differs_between_epochs_and_seeds():
    orders = {
        tuple(np.concatenate(epoch_batches(50, 8, seed, epoch)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(0, 99))
def test_drawn_captions_exist(counts: list[int], epoch: int):
    drawn = epoch_captions(np.array(counts), 3, epoch)
    assert ((drawn >= 0) & (drawn < counts)).all()


def test_every_caption_is_drawn_in_time():
    counts = np.array([3])
    assert {int(epoch_captions(counts, 0, epoch)[0]) for epoch in range(40)} == {0, 1, 2}


def test_step_seeds_differ_and_fit_a_torch_generator():
    seeds = {step_seed(seed, step) for seed in range(4) for step in range(250)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_what_augments_a_sample_depends_on_seed_epoch_and_sample_alone():
    both = sample_draws(np.array([4, 9]), seed=1, epoch=2, count=5)
    assert both.shape == (2, 5)
    assert ((both >= 0) & (both < 1)).all()
    assert np.array_equal(sample_draws(np.array([9]), seed=1, epoch=2, count=5)[0], both[1])
    others = [sample_draws(np.array([9]), s, e, 5)[0] for s, e in ((2, 2), (1, 3))]
    assert not any(np.array_equal(other, both[1]) for other in [*others, both[0]])
