"""What a fingerprint covers, and what not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small_models import model_cfg, random_model
from torch import Tensor

from hotclip_server.encoding.architecture import OpenClipConfig
from hotclip_server.encoding.fingerprint import encoder_id
from hotclip_server.encoding.protocol import Tower
from hotclip_server.encoding.spaces import space_id

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    config = OpenClipConfig(model=model_cfg("resnet"), preprocess={})
    model = random_model(config, tmp_path_factory.mktemp("model"), seed=1)
    return {
        name: value.half().float() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def ids(state: State, config: dict[str, Any], inputs: object = "x") -> tuple[str, str]:
    return (
        encoder_id(Tower.TEXT, state, config, inputs),
        encoder_id(Tower.VISION, state, config, inputs),
    )


def changed(state: State, name: str) -> State:
    return state | {name: state[name] + 1}


def test_towers_differ_and_repeat(state: State) -> None:
    first = ids(state, model_cfg("resnet"))
    assert first[0] != first[1]
    assert first == ids(dict(reversed(state.items())), model_cfg("resnet"))
    assert all(len(value) == 32 for value in first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_precision_is_not_part(state: State, dtype: torch.dtype) -> None:
    other = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in state.items()
    }
    assert ids(other, model_cfg("resnet")) == ids(state, model_cfg("resnet"))


@pytest.mark.parametrize(
    ("name", "text", "vision"),
    [
        ("positional_embedding", True, False),
        ("text_projection", True, False),
        ("visual.conv1.weight", False, True),
        ("visual.bn1.running_mean", False, True),
        ("visual.bn1.num_batches_tracked", False, False),
        ("logit_scale", False, False),
    ],
)
def test_a_weight_changes_its_tower_alone(
    state: State, name: str, text: bool, vision: bool
) -> None:
    before, after = ids(state, model_cfg("resnet")), ids(changed(state, name), model_cfg("resnet"))
    assert (before[0] != after[0], before[1] != after[1]) == (text, vision)


def with_text(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["text_cfg"].update({key: value})


@pytest.mark.parametrize(
    ("change", "text", "vision"),
    [
        (with_text("pool_type", "last"), True, False),
        (with_text("hf_tokenizer_name", "another/name"), False, False),
        (lambda config: config.update(embed_dim=25), True, True),
        (lambda config: config.update(quick_gelu=True), True, True),
        (lambda config: config["vision_cfg"].update(pool_type="avg"), False, True),
        (lambda config: config["vision_cfg"].update(patch_dropout=0.5), False, False),
    ],
)
def test_the_config_counts(
    state: State, change: Callable[[dict[str, Any]], None], text: bool, vision: bool
) -> None:
    config = model_cfg("resnet")
    before = ids(state, config)
    change(config)
    after = ids(state, config)
    assert (before[0] != after[0], before[1] != after[1]) == (text, vision)


def test_inputs_count(state: State) -> None:
    before, after = ids(state, model_cfg("resnet")), ids(state, model_cfg("resnet"), {"size": 65})
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_space_is_two_encoders_in_their_places() -> None:
    assert space_id("a", "b") == space_id("a", "b")
    assert len({space_id("a", "b"), space_id("b", "a"), space_id("a", "c")}) == 3
