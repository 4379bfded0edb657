"""The held-out loss is the training loss of the same pairs, in batches of the same size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hotclip_server.training.evaluate import Evaluator
from hotclip_server.training.held_out_loss import held_out_loss
from hotclip_server.training.losses import equal_targets, info_nce
from hotclip_server.training.pairs import MemoryPairs, Pair
from tests.unit.training.tiny import colours, tiny_clip


def unit(*rows: tuple[float, ...]) -> np.ndarray:
    values = np.array(rows)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_one_batch_is_the_loss_itself() -> None:
    images, texts = unit((1, 0), (0, 1), (1, 1)), unit((1, 0.1), (0.3, 1), (1, 0.8))
    scale = torch.tensor([2.0, 3.0])
    found = held_out_loss(
        images, texts, scale, lambda row: np.eye(3, dtype=bool)[row], batch_size=3
    )
    expected = info_nce(
        torch.from_numpy(images),
        torch.from_numpy(texts),
        torch.tensor(2.5, dtype=torch.float64),
        equal_targets(torch.eye(3, dtype=torch.bool)),
    )
    assert found == pytest.approx(float(expected))


def test_a_batch_of_one_costs_nothing_and_small_batches_cost_less() -> None:
    clip, data = tiny_clip(), colours(12)
    losses = [Evaluator(clip, data, loss_batch=n).evaluate(clip).loss for n in (1, 4, 12)]
    assert losses[0] == pytest.approx(0, abs=1e-9)
    assert losses[0] < losses[1] < losses[2]


def test_duplicates_are_positives() -> None:
    """Were they negatives of each other, no model could get below ln 2."""
    clip, data = tiny_clip(), colours(1)
    pairs = [Pair("image0", "one", "g"), Pair("image0", "two", "g"), Pair("image0", "three", "g")]
    loss = Evaluator(clip, MemoryPairs(pairs, data.images), loss_batch=3).evaluate(clip).loss
    target_entropy = np.log(3)  # soft targets: each of three positives has 1/3
    assert loss >= target_entropy - 1e-9
    with torch.no_grad():
        clip.model.logit_scale.fill_(-20.0)  # every logit is 0
    flat = Evaluator(clip, MemoryPairs(pairs, data.images), loss_batch=3).evaluate(clip).loss
    assert flat == pytest.approx(target_entropy, abs=1e-6)
