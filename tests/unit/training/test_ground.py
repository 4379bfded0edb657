"""What a model or a machine cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.exporting import write_multilingual
from support.small_models import write_model

from hotclip_server.encoding.engines.linear import multiplies_in
from hotclip_server.errors import DataLoss
from hotclip_server.training.config import LoraConfig, TrainConfig
from hotclip_server.training.ground import Ground, device_problem, weight_shapes

CONFIG = TrainConfig()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    kinds = ("clip", "siglip", "resnet", "custom-text")
    made = {kind: write_model(root / kind, kind) for kind in kinds}
    (root / "xlm").mkdir()
    return {**made, "xlm": write_multilingual(root / "xlm", "xlm-roberta")}


def problems(folders: dict[str, Path], kind: str, config: TrainConfig, device: str = "") -> list:
    found = Ground("cpu", folders.__getitem__).problems(config, kind, device, 5000)
    return [violation.field for violation in found]


def test_damaged_weights_are_told_as_such(tmp_path: Path) -> None:
    for damage in (b"", b"\xff" * 64):
        file = tmp_path / "open_clip_model.safetensors"
        file.write_bytes(damage)
        with pytest.raises(DataLoss, match="can't be read"):
            weight_shapes(file)
        file.unlink()
    with pytest.raises(DataLoss):
        weight_shapes(file)


@pytest.mark.parametrize("method", ["full", "lora", "projection", "lit", "auto"])
def test_every_method_suits_every_kind_of_tower(folders: dict[str, Path], method: str) -> None:
    config = replace(CONFIG, method=method)
    assert [problems(folders, kind, config) for kind in folders] == [[]] * len(folders)


def test_what_a_model_lacks_is_named(folders: dict[str, Path]) -> None:
    siglip = replace(CONFIG, loss="siglip")
    assert problems(folders, "siglip", siglip) == []
    assert problems(folders, "clip", siglip) == ["loss"]
    assert problems(folders, "clip", replace(CONFIG, freeze_layers=2)) == []
    assert problems(folders, "clip", replace(CONFIG, freeze_layers=3)) == ["freeze_layers"]
    # Four stages of one block each against two blocks of text.
    lora = replace(CONFIG, method="lora")
    assert problems(folders, "resnet", replace(lora, lora=LoraConfig(targets=("mlp",)))) == [
        "method"
    ]
    locked = replace(lora, lora=LoraConfig(targets=("mlp",)), lock_image=True)
    assert problems(folders, "resnet", locked) == []


def test_devices(folders: dict[str, Path]) -> None:
    assert device_problem("") == device_problem("cpu") == ""
    assert "cuda:<number>" in device_problem("gpu")
    count = torch.cuda.device_count()
    assert str(count) in device_problem(f"cuda:{count}")
    bf16 = [] if multiplies_in(torch.bfloat16) else ["precision"]
    assert problems(folders, "clip", replace(CONFIG, precision="bf16")) == bf16


def test_shapes_are_read_without_the_weights(folders: dict[str, Path]) -> None:
    shapes = weight_shapes(folders["clip"] / "open_clip_model.safetensors")
    assert shapes["visual.proj"] == (64, 24)
    assert shapes["logit_scale"] == ()
