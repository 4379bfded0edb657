from __future__ import annotations

import math
from typing import Any

import pytest

from hotclip_server.training.config import LARGE, AugmentConfig, TrainConfig
from hotclip_server.training.errors import InvalidTrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("max_steps", 0),
        ("batch_size", 1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("warmup", 1.5),
        ("scheduler", "step"),
        ("precision", "fp8"),
        ("weight_decay", -1.0),
        ("beta2", 1.0),
        ("clip_norm", math.inf),
        ("ema", -0.1),
        ("seed", -1),
    ],
)
def test_a_bad_value_names_its_field(field: str, value: object):
    with pytest.raises(InvalidTrainConfig) as caught:
        TrainConfig(**{field: value})
    assert [violation.field for violation in caught.value.violations] == [field]
    assert field in str(caught.value)


def test_all_bad_fields_are_named_at_once():
    with pytest.raises(InvalidTrainConfig) as caught:
        TrainConfig(
            epochs=-1,
            lock_image=True,
            lock_text=True,
            augment=AugmentConfig(crop=(1.0, 0.5), hue=2.0),
        )
    fields = [violation.field for violation in caught.value.violations]
    assert sorted(fields) == ["augment.crop", "augment.hue", "epochs", "lock_text"]


def test_a_small_model_learns_faster_unless_told() -> None:
    def rate(weights: int, **given: Any) -> float:
        config = TrainConfig(**given)
        return config.resolved(pairs=2000, weights=weights, logit_bias=False, device="cpu").rate

    assert rate(366_000_000) == rate(LARGE) == 1e-5
    assert rate(LARGE // 2) == pytest.approx(2e-5)
    assert rate(1000) == pytest.approx(1e-3)
    assert rate(LARGE, method="lora") == 2e-4
    assert rate(LARGE // 50, method="lora") == pytest.approx(1e-2)
    assert rate(1000, learning_rate=3e-6) == 3e-6
