"""What a batch costs: from features that come in any number of chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hotclip_server.training.config import MetricLossConfig, TrainConfig
from hotclip_server.training.dataset import Batch
from hotclip_server.training.losses import info_nce, sigmoid_loss, targets_of
from hotclip_server.training.metric_losses import MetricLoss
from hotclip_server.training.metric_names import METRIC_LOSSES, METRIC_MINERS, Choice, Number
from hotclip_server.training.objective import Objective
from hotclip_server.training.trainer import train
from tests.unit.training.tiny import colours, tiny_clip

CONFIG = TrainConfig()


def features(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 16, dtype=torch.float64, generator=generator)


def a_batch() -> Batch:
    keys = torch.tensor([[0, 1, 2, 3], [0, 1, 1, 2], [0, -1, -1, 0], [0, 1, 1, 0]])
    return Batch(
        pairs=4,
        images=torch.zeros(4, 3, 2, 2, dtype=torch.uint8),
        tokens=torch.zeros(5, 8, dtype=torch.int64),
        image_keys=keys,
        text_keys=torch.cat([keys, torch.tensor([[-1], [9], [-1], [-1]])], dim=1),
        scores=torch.tensor([1.0, 0.5, 1.0, 0.0]),
    )


@pytest.mark.parametrize("positives", ["share", "mask", "off"])
def test_it_is_the_loss_of_unit_features_in_their_precision(positives):
    model, batch = tiny_clip().model.double(), a_batch()
    image, text = features(4, 0), features(5, 1)
    targets = targets_of(batch.image_keys, batch.text_keys, batch.scores.double(), positives)
    unit = normalize(image, dim=-1), normalize(text, dim=-1)
    found = Objective(model, replace(CONFIG, positives=positives, loss="info_nce"))(
        image, text, batch
    )
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, info_nce(*unit, model.logit_scale, targets))
    model.logit_bias = torch.nn.Parameter(torch.tensor(-3.0, dtype=torch.float64))
    found = Objective(model, replace(CONFIG, positives=positives, loss="siglip"))(
        image, text, batch
    )
    expected = sigmoid_loss(*unit, model.logit_scale, model.logit_bias, targets)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert model.logit_bias.grad is not None
    assert model.logit_scale.grad is not None


def test_preserving_adds_the_distance_to_the_base():
    model, batch = tiny_clip().model.double(), a_batch()
    image, text = features(4, 0), features(5, 1)
    plain = Objective(model, CONFIG)(image, text, batch)
    near = Objective(model, replace(CONFIG, preserve=2.0))
    away = torch.tensor([0.5, 0.0, 0.0, 0.1], dtype=torch.float64)
    image = torch.cat([image, away[:, None]], 1)
    found = near(image, torch.cat([text, torch.ones(5, 1, dtype=torch.float64)], 1), batch)
    torch.testing.assert_close(found, plain + 2 * (0.15 + 1))


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_every_metric_loss_takes_its_options_and_has_a_gradient(name):
    for number in range(2):
        options = {}
        for option, kind in METRIC_LOSSES[name].items():
            if isinstance(kind, Number):
                options[option] = [kind.low, kind.high][number]
            else:
                options[option] = bool(number)
        if name in ("NCALoss", "MultiSimilarityLoss", "CircleLoss", "TupletMarginLoss"):
            options = {}
        loss = MetricLoss(MetricLossConfig(name=name, options=options if number else {}))
        image, text = (features(8, seed).requires_grad_(True) for seed in (0, 1))
        labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        keys = torch.stack([torch.arange(8), labels, labels * 0 - 1, labels])
        value = loss(normalize(image, dim=-1), normalize(text, dim=-1), keys)
        assert value.ndim == 0
        assert torch.isfinite(value)
        value.backward()
        assert image.grad is not None
        assert torch.isfinite(image.grad).all()


@pytest.mark.parametrize("name", METRIC_MINERS)
def test_every_miner_takes_its_options(name):
    options = {
        option: kind.names[0] if isinstance(kind, Choice) else 0.5
        for option, kind in METRIC_MINERS[name].items()
    }
    if name == "AngularMiner":
        options = {"angle": 20.0}
    config = MetricLossConfig(name="TripletMarginLoss", miner=name, miner_options=options)
    labels = torch.tensor([0, 0, 1, 1])
    keys = torch.stack([torch.arange(4), labels, labels, labels])
    unit = normalize(features(4, 0), dim=-1)
    assert torch.isfinite(MetricLoss(config)(unit, unit.flip(0), keys))


def test_triplets_of_images_and_each_text_once():
    """Two classes of two images and one text each, against the definition."""
    labels = torch.tensor([0, 0, 1, 1])
    keys = torch.stack([torch.arange(4), labels, -torch.ones(4, dtype=torch.int64), labels])
    image, text = normalize(features(4, 3), dim=-1), normalize(features(2, 4), dim=-1)
    config = MetricLossConfig(name="TripletMarginLoss", options={"margin": 0.3})
    found = float(MetricLoss(config)(image, text[labels], keys))
    items, classes = torch.cat([image, text]), [0, 0, 1, 1, 0, 1]
    terms = []
    for a in range(6):
        for p in range(6):
            for n in range(6):
                if a != p and classes[a] == classes[p] != classes[n]:
                    near, far = ((items[a] - items[other]).norm() for other in (p, n))
                    terms.append(max(0.0, float(near - far) + 0.3))
    positive = [term for term in terms if term > 0]
    assert found == pytest.approx(sum(positive) / len(positive), rel=1e-5)


def test_a_metric_loss_trains():
    clip, data = tiny_clip(), colours()
    metric = MetricLossConfig(name="TripletMarginLoss", miner="BatchHardMiner", items_per_class=1)
    config = TrainConfig(
        loss="metric", metric_loss=metric, epochs=20, batch_size=12, learning_rate=2e-3
    )
    losses = [event.loss for event in train(clip, data, config) if hasattr(event, "loss")]
    assert losses[-1] < 0.7 * losses[0]
