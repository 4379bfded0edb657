from __future__ import annotations

import math

import torch
from torch.nn.functional import normalize

from hotclip_server.training.losses import clamp_log_scale, info_nce, positive_mask


def embeddings(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, count, 8, dtype=torch.float64, generator=generator)
    return normalize(image, dim=-1), normalize(text, dim=-1)


def plain_loss(image: torch.Tensor, text: torch.Tensor, scale: float, groups: list[int]) -> float:
    """The definition, item by item."""
    count = len(groups)
    total = 0.0
    for mine, theirs in ((image, text), (text, image)):
        for i in range(count):
            logits = [scale * float(mine[i] @ theirs[j]) for j in range(count)]
            normaliser = math.log(sum(math.exp(value) for value in logits))
            positives = [j for j in range(count) if groups[j] == groups[i]]
            log_likelihood = sum(logits[j] - normaliser for j in positives) / len(positives)
            total -= log_likelihood / (2 * count)
    return total


def test_equals_a_plain_loop_with_several_positives():
    image, text = embeddings(7)
    groups = [0, 1, 0, 2, 3, 1, 0]
    key = torch.tensor(groups)
    loss = info_nce(
        image, text, torch.tensor(2.0, dtype=torch.float64), positive_mask(key[None], key[None])
    )
    assert math.isclose(float(loss), plain_loss(image, text, math.exp(2.0), groups), rel_tol=1e-12)


def test_without_duplicates_it_is_cross_entropy():
    image, text = embeddings(5)
    logits = 10 * image @ text.T
    target = torch.arange(5)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    number = torch.arange(5)[None]
    positives = positive_mask(number, number)
    scale = torch.tensor([math.log(10.0)], dtype=torch.float64)  # open_clip's other shape
    torch.testing.assert_close(info_nce(image, text, scale, positives), expected)


def test_positives_agree_in_any_key_and_no_group_agrees_with_nothing():
    image, text, group = (
        torch.tensor([0, 1, 2, 3]),
        torch.tensor([0, 1, 1, 2]),
        torch.tensor([5, -1, -1, 5]),
    )
    expected = torch.eye(4, dtype=torch.bool)
    expected[1, 2] = expected[2, 1] = True  # the same text
    expected[0, 3] = expected[3, 0] = True  # the same group
    keys = torch.stack([image, text, group])
    assert torch.equal(positive_mask(keys, keys), expected)


def test_log_scale_is_clamped():
    scale = torch.tensor(9.0)
    clamp_log_scale(scale)
    assert math.isclose(float(scale.exp()), 100, rel_tol=1e-6)
    low = torch.tensor(-1.0)
    clamp_log_scale(low)
    assert float(low) == 0
