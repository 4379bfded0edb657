"""The pooling attention of a ResNet gives the same with one query as with all."""

from __future__ import annotations

import torch

from hotclip_server.training.one_query import one_query
from tests.unit.training.test_folding import gradients, visual


def test_features_and_gradients_are_those_of_all_queries() -> None:
    model = visual()
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    features, plain = gradients(model, pixels)
    with one_query(model) as count:
        assert count == 1
        also, found = gradients(model, pixels)
    torch.testing.assert_close(also, features)
    assert found.keys() == plain.keys()
    largest = max(float(gradient.norm()) for gradient in plain.values())
    for name, gradient in plain.items():  # the bias of keys has none but rounding's
        assert (found[name] - gradient).norm() <= 1e-10 * gradient.norm() + 1e-14 * largest, name
    assert not any("forward" in vars(module) for module in model.modules())
