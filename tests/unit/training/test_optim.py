from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hotclip_server.training.average import WeightAverage
from hotclip_server.training.config import Scheduler, TrainConfig
from hotclip_server.training.optim import (
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from hotclip_server.training.tuning import Direct
from tests.unit.training.tiny import tiny_clip


def test_cosine_with_warm_up():
    config = TrainConfig(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001


def test_linear_and_constant():
    linear = TrainConfig(learning_rate=1.0, warmup=0.0, scheduler="linear")
    assert [learning_rate(linear, step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    constant = TrainConfig(learning_rate=0.3, warmup=0.0, scheduler="constant")
    assert learning_rate(constant, 99, 100) == 0.3


@settings(deadline=None)
@given(
    st.sampled_from(["cosine", "linear", "constant"]),
    st.floats(0, 1),
    st.integers(1, 300),
)
def test_rate_is_never_zero_nor_above_the_peak(scheduler: Scheduler, warmup: float, steps: int):
    config = TrainConfig(learning_rate=0.5, warmup=warmup, scheduler=scheduler)
    for step in range(steps):
        assert 0 < learning_rate(config, step, steps) <= 0.5 * (1 + 1e-12)


def test_no_decay_on_one_dimensional_parameters_and_slow_logit_scale():
    config = TrainConfig()
    model = tiny_clip().model
    optimizer = make_optimizer(Direct(model, config).parameters, config)
    set_learning_rate(optimizer, 1.0)
    of_parameter = {
        id(parameter): group for group in optimizer.param_groups for parameter in group["params"]
    }
    assert len(of_parameter) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = of_parameter[id(parameter)]
        decays = parameter.ndim >= 2
        assert group["weight_decay"] == (config.weight_decay if decays else 0), name
        assert group["lr"] == pytest.approx(0.1 if name == "logit_scale" else 1.0), name


def test_average_follows_and_swaps_back():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0)
    average = WeightAverage(Direct(model, TrainConfig()), horizon=4)
    with torch.no_grad():
        model.weight.fill_(1)
    for _ in range(100):
        average.update()
    with torch.no_grad():
        model.weight.fill_(5)
    with average.swapped_in():
        assert math.isclose(float(model.weight.detach()), 1, rel_tol=1e-5)
    assert float(model.weight.detach()) == 5
    average.swap_in()
    assert math.isclose(float(model.weight.detach()), 1, rel_tol=1e-5)
