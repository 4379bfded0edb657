"""Weights are checked against the model before they are used."""

import errno
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.small_models import model_cfg, random_model
from torch import Tensor, nn

from hotclip_server.encoding.architecture import OpenClipConfig, build_model
from hotclip_server.encoding.weights import (
    check_weights,
    master_weights,
    read_weights,
    write_tensors,
)
from hotclip_server.errors import DataLoss, FailedPrecondition

State = dict[str, Tensor]
CONFIG = OpenClipConfig(model=model_cfg("resnet"), preprocess={})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return random_model(CONFIG, tmp_path_factory.mktemp("model"), seed=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back(model: nn.Module, tmp_path: Path, dtype: torch.dtype) -> None:
    state = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in master_weights(model).items()
    }
    write_tensors(state, tmp_path / "weights")
    other = build_model(CONFIG, tmp_path)
    read_weights(other, tmp_path / "weights")
    for name, value in other.state_dict().items():
        assert value.dtype == (torch.float32 if value.is_floating_point() else torch.int64)
        assert torch.equal(value, state[name].to(value.dtype)), name


def test_a_write_that_the_system_refuses_is_told_as_such(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_tensors({"a": torch.zeros(1 << 16)}, tmp_path / "weights")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def without(state: State) -> None:
    del state["visual.conv1.weight"]


def renamed(state: State) -> None:
    state["visual.conv9.weight"] = state.pop("visual.conv1.weight")


def reshaped(state: State) -> None:
    state["text_projection"] = state["text_projection"][:-1].contiguous()


def integers(state: State) -> None:
    state["text_projection"] = state["text_projection"].int()


def not_a_number(state: State) -> None:
    state["text_projection"][3, 3] = torch.nan


def infinite(state: State) -> None:
    state["visual.conv1.weight"][0, 0, 0, 0] = -torch.inf


def save_damaged(model: nn.Module, path: Path, damage: Callable[[State], None]) -> None:
    state = {name: value.clone() for name, value in master_weights(model).items()}
    damage(state)
    save_file(state, path)


@pytest.mark.parametrize("damage", [without, renamed, reshaped, integers, not_a_number, infinite])
def test_weights_that_do_not_fit(
    model: nn.Module, tmp_path: Path, damage: Callable[[State], None]
) -> None:
    save_damaged(model, tmp_path / "weights", damage)
    with pytest.raises(FailedPrecondition) as caught:
        read_weights(build_model(CONFIG, tmp_path), tmp_path / "weights")
    assert caught.value.reason == "VERSION_UNFIT"


@pytest.mark.parametrize("damage", [without, renamed, reshaped, integers])
def test_what_a_header_tells_is_enough(
    model: nn.Module, tmp_path: Path, damage: Callable[[State], None]
) -> None:
    save_damaged(model, tmp_path / "weights", damage)
    with pytest.raises(FailedPrecondition) as caught:
        check_weights(build_model(CONFIG, tmp_path), tmp_path / "weights")
    assert caught.value.reason == "VERSION_UNFIT"


def test_a_file_cut_short(model: nn.Module, tmp_path: Path) -> None:
    write_tensors(master_weights(model), tmp_path / "weights")
    data = (tmp_path / "weights").read_bytes()
    (tmp_path / "weights").write_bytes(data[:-1])
    with pytest.raises(DataLoss):
        read_weights(build_model(CONFIG, tmp_path), tmp_path / "weights")


def test_a_diverged_model_is_not_written(tmp_path: Path) -> None:
    model = random_model(CONFIG, tmp_path, seed=2)
    with torch.no_grad():
        model.logit_scale.fill_(torch.nan)
    with pytest.raises(FailedPrecondition, match="logit_scale"):
        master_weights(model)
