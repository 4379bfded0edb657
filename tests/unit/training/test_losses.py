"""Losses against their definitions, item by item in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from hotclip_server.training.losses import (
    clamp_log_scale,
    feature_distance,
    info_nce,
    positive_mask,
    sigmoid_loss,
    targets_of,
)

MODES = st.sampled_from(["share", "mask", "off"])


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Unit features of p images and q texts, their keys, and scores of the pairs."""
    pairs = draw(st.integers(1, 6))
    images, texts = (pairs + draw(st.integers(0, 3)) for _ in range(2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    image = torch.randn(images, 5, dtype=torch.float64, generator=generator)
    text = torch.randn(texts, 5, dtype=torch.float64, generator=generator)
    keys = torch.randint(-1, 3, (2, pairs), generator=generator)
    image_keys = torch.cat([keys, torch.randint(-1, 3, (2, images - pairs))], dim=1)
    text_keys = torch.cat([keys, torch.randint(-1, 3, (2, texts - pairs))], dim=1)
    scores = torch.rand(pairs, dtype=torch.float64, generator=generator)
    scores[torch.rand(pairs, generator=generator) < 0.2] = 0
    return normalize(image, dim=-1), normalize(text, dim=-1), image_keys, text_keys, scores


def related(image_keys: Tensor, text_keys: Tensor, i: int, j: int, pairs: int) -> bool:
    agree = zip(image_keys[:, i].tolist(), text_keys[:, j].tolist(), strict=True)
    return i == j < pairs or any(mine == theirs >= 0 for mine, theirs in agree)


def naive_info_nce(
    image: Sequence[Sequence[float]],
    text: Sequence[Sequence[float]],
    scale: float,
    positive: np.ndarray,
    ignored: np.ndarray,
    scores: Sequence[float],
) -> float:
    total = 0.0
    for i, score in enumerate(scores):
        mine = 0.0
        for query, others, right, out in (
            (image[i], text, positive[i], ignored[i]),
            (text[i], image, positive[:, i], ignored[:, i]),
        ):
            logits = [scale * float(np.dot(query, other)) for other in others]
            counted = [j for j in range(len(others)) if not out[j]]
            normaliser = math.log(sum(math.exp(logits[j]) for j in counted))
            mine -= sum(logits[j] - normaliser for j in counted if right[j]) / sum(right) / 2
        total += score * mine
    return total / sum(scores) if sum(scores) else 0.0


def naive_sigmoid(
    image: Sequence[Sequence[float]],
    text: Sequence[Sequence[float]],
    scale: float,
    bias: float,
    positive: np.ndarray,
    ignored: np.ndarray,
    scores: Sequence[float],
) -> float:
    total, pairs = 0.0, len(scores)
    score = [*scores, *[1.0] * 9]
    for i in range(len(image)):
        for j in range(len(text)):
            if ignored[i, j] or (i >= pairs and j >= pairs):
                continue
            logit = scale * float(np.dot(image[i], text[j])) + bias
            if positive[i, j]:
                total += min(score[i], score[j]) * math.log1p(math.exp(-logit))
            else:
                total += math.log1p(math.exp(logit))
    return total / pairs


@settings(deadline=None)
@given(batches(), MODES, st.floats(0, 3), st.floats(-10, 2))
def test_both_are_what_they_are_defined_as(batch, mode, log_scale, bias):
    image, text, image_keys, text_keys, scores = batch
    rows, columns = range(len(image)), range(len(text))
    positive = np.array(
        [[related(image_keys, text_keys, i, j, len(scores)) for j in columns] for i in rows]
    )
    own = np.zeros_like(positive)
    np.fill_diagonal(own[: len(scores), : len(scores)], True)
    ignored = positive & ~own if mode == "mask" else np.zeros_like(positive)
    right = positive if mode == "share" else own
    targets = targets_of(image_keys, text_keys, scores, mode)
    scale = torch.tensor(log_scale, dtype=torch.float64)
    given_bias = torch.tensor([bias], dtype=torch.float64)
    given_features = image.tolist(), text.tolist(), math.exp(log_scale)
    expected = naive_info_nce(*given_features, right, ignored, scores.tolist())
    assert float(info_nce(image, text, scale, targets)) == pytest.approx(expected, rel=1e-10)
    expected = naive_sigmoid(*given_features, bias, right, ignored, scores.tolist())
    found = float(sigmoid_loss(image, text, scale, given_bias, targets))
    assert found == pytest.approx(expected, rel=1e-10)


@settings(deadline=None, max_examples=20)
@given(batches(), MODES)
def test_gradients_are_finite_whatever_is_left_out(batch, mode):
    image, text, image_keys, text_keys, scores = batch
    image.requires_grad_(True)
    text.requires_grad_(True)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    targets = targets_of(image_keys, text_keys, scores, mode)
    loss = info_nce(image, text, scale, targets)
    loss = loss + sigmoid_loss(image, text, scale, torch.zeros(1), targets)
    for gradient in torch.autograd.grad(loss, [image, text, scale]):
        assert torch.isfinite(gradient).all()


def test_without_duplicates_it_is_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 5, 8, dtype=torch.float64, generator=generator)
    image, text = normalize(image, dim=-1), normalize(text, dim=-1)
    logits = 10 * image @ text.T
    target = torch.arange(5)
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    number = torch.arange(5)[None]
    targets = targets_of(number, number, torch.ones(5, dtype=torch.float64), "share")
    scale = torch.tensor([math.log(10.0)], dtype=torch.float64)  # open_clip's other shape
    torch.testing.assert_close(info_nce(image, text, scale, targets), expected)


def test_sharing_matters_where_texts_differ():
    """Rows of one text ask for an image each or for all of them each: together that is the same.
    Rows of one label with different texts are kept apart unless they share."""
    generator = torch.Generator().manual_seed(0)
    image, words = torch.randn(2, 6, 8, dtype=torch.float64, generator=generator)
    label = torch.tensor([0, 0, 0, 1, 1, 2])
    keys = torch.stack([torch.arange(6), label])
    losses = {}
    for texts in (label, torch.arange(6)):
        features = (image.clone().requires_grad_(True), words.clone().requires_grad_(True))
        text = normalize(features[1][texts], dim=-1)
        for mode in ("share", "off"):
            targets = targets_of(keys, keys, torch.ones(6, dtype=torch.float64), mode)
            loss = info_nce(normalize(features[0], dim=-1), text, torch.tensor(1.0), targets)
            gradients = torch.autograd.grad(loss, features, retain_graph=True)
            losses[texts is label, mode] = torch.cat([loss[None], *map(torch.ravel, gradients)])
    torch.testing.assert_close(losses[True, "share"], losses[True, "off"])
    assert not torch.allclose(losses[False, "share"], losses[False, "off"], rtol=1e-3)


def test_a_wrong_text_pulls_from_images_alone():
    """A text past the pairs is a candidate of each image, and asks for none itself."""
    image = normalize(torch.eye(2, 3, dtype=torch.float64), dim=-1)
    text = torch.cat([image, image[:1]]).requires_grad_(True)
    keys = torch.tensor([[0, 1]])
    text_keys = torch.tensor([[0, 1, 2]])
    targets = targets_of(keys, text_keys, torch.ones(2), "share")
    info_nce(image, text, torch.tensor(1.0), targets).backward()
    assert text.grad is not None
    assert float(text.grad[2] @ image[0]) > 0  # it is pushed away from what it resembles


def test_positives_agree_in_any_key_and_no_group_agrees_with_nothing():
    image, text, group = (
        torch.tensor([0, 1, 2, 3]),
        torch.tensor([0, 1, 1, 2]),
        torch.tensor([5, -1, -1, 5]),
    )
    expected = torch.eye(4, dtype=torch.bool)  # the same image
    expected[1, 2] = expected[2, 1] = True  # the same text
    expected[0, 3] = expected[3, 0] = True  # the same group
    keys = torch.stack([image, text, group])
    assert torch.equal(positive_mask(keys, keys), expected)


def test_distance_of_features():
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    base = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert feature_distance([features], [base]).tolist() == [0, 2]
    deeper = torch.tensor([[0.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    assert feature_distance([features, deeper], [base, -deeper]).tolist() == [2, 3]


def test_log_scale_is_clamped():
    scale = torch.tensor(9.0)
    clamp_log_scale(scale)
    assert math.isclose(float(scale.exp()), 100, rel_tol=1e-6)
    low = torch.tensor(-1.0)
    clamp_log_scale(low)
    assert float(low) == 0
