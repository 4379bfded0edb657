"""A BatchNorm that stands still may lie in the convolution before it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hotclip_server.training.folding import folded
from tests.unit.training.tiny import tiny_clip


def visual() -> nn.Module:
    """Of a ResNet, in float64, with statistics and weights that are none of a new layer."""
    model = tiny_clip(resnet=True).model.visual.double().eval()
    drawn = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 2, generator=drawn)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(generator=drawn)
    return model


def gradients(model: nn.Module, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    features = model(pixels)
    features.square().sum().backward()
    return features.detach(), {
        name: value.grad.clone()
        for name, value in model.named_parameters()
        if value.grad is not None
    }


def test_features_and_gradients_are_those_of_both_layers() -> None:
    model = visual()
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    features, plain = gradients(model, pixels)
    with folded(model) as count:
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert count == norms > 3
        also, found = gradients(model, pixels)
    torch.testing.assert_close(also, features)
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    assert not any("forward" in vars(module) for module in model.modules())


def test_statistics_that_are_learnt_are_learnt_inside_too() -> None:
    model, other = visual().train(), visual().train()
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    features, _ = gradients(model, pixels)
    with folded(other):
        also, _ = gradients(other, pixels)
    torch.testing.assert_close(also, features, rtol=0, atol=0)
    for one, two in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("broken", ["channels", "order"])
def test_what_is_no_pair_stays_as_it_is(broken: str) -> None:
    first = nn.BatchNorm2d(4) if broken == "order" else nn.Conv2d(4, 4, 1)
    second = nn.Conv2d(4, 4, 1) if broken == "order" else nn.Dropout()
    with folded(nn.Sequential(first, second)) as count:
        assert count == 0
