"""Models are built from a config alone, and a config from elsewhere is not trusted."""

import gc
import json
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import psutil
import pytest
import torch
from support.small_models import model_cfg, write_model

from hotclip_server.encoding.architecture import OpenClipConfig, build_model, config_of
from hotclip_server.encoding.weights import read_weights
from hotclip_server.errors import FailedPrecondition

KINDS = ["clip", "quickgelu", "custom-text", "siglip", "resnet", "eos", "mini"]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_open_clips_factory(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, kind)
    theirs = open_clip.create_model(f"local-dir:{folder}")
    config = OpenClipConfig.from_json((folder / "open_clip_config.json").read_bytes())
    ours = build_model(config, folder)
    read_weights(ours, folder / "open_clip_model.safetensors")
    assert type(ours) is type(theirs)
    assert ours.visual.preprocess_cfg == theirs.visual.preprocess_cfg
    assert str(ours) == str(theirs)
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    for name, value in ours.named_buffers():
        assert torch.equal(value, theirs.get_buffer(name)), name
    again = OpenClipConfig.from_json(config_of(ours, config.model).to_json())
    assert build_model(again, folder).visual.preprocess_cfg["size"] == ours.visual.image_size


@pytest.mark.skipif(sys.platform == "win32", reason="maps memory in another way")
@pytest.mark.parametrize("initialise", [False, True])
def test_large_weights_go_back_to_the_system(initialise: bool, tmp_path: Path) -> None:
    settings = model_cfg("clip")
    settings["vision_cfg"].update(width=1024, layers=12)
    process = psutil.Process()
    model = build_model(
        OpenClipConfig(model=settings, preprocess={}), tmp_path, initialise=initialise
    )
    large = [weight.fill_(1.0) for weight in model.parameters() if weight.nbytes >= 1 << 20]
    size = sum(weight.nbytes for weight in large)
    assert size > 500 << 20
    assert not any(weight.data_ptr() % mmap.PAGESIZE for weight in large)
    held = process.memory_info().rss
    del model, large
    gc.collect()
    assert held - process.memory_info().rss > 0.95 * size


def test_every_architecture_of_open_clip_is_acceptable() -> None:
    for name in open_clip.list_models():
        data = json.dumps({"model_cfg": open_clip.get_model_config(name)}).encode()
        assert OpenClipConfig.from_json(data).model["embed_dim"] > 0


def with_text(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["text_cfg"].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("embed_dim"),
        lambda config: config.pop("text_cfg"),
        lambda config: config.update(text_cfg=3),
        lambda config: config["vision_cfg"].update(timm_model_name="hf-hub:some/thing"),
        with_text("hf_model_name", "../elsewhere"),
        with_text("hf_tokenizer_name", "/etc"),
        with_text("tokenizer_kwargs", {"trust_remote_code": True}),
    ],
)
def test_configs_that_are_refused(change: Callable[[dict[str, Any]], object]) -> None:
    config = model_cfg()
    change(config)
    with pytest.raises(FailedPrecondition) as caught:
        OpenClipConfig.from_json(json.dumps({"model_cfg": config}).encode())
    assert caught.value.reason == "VERSION_UNFIT"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff", b'{"model_cfg": null}'])
def test_files_that_are_no_config(data: bytes) -> None:
    with pytest.raises(FailedPrecondition):
        OpenClipConfig.from_json(data)


@pytest.mark.parametrize(
    "change",
    [with_text("unheard_of", 1), with_text("width", 33), with_text("pool_type", "sideways")],
)
def test_configs_that_cannot_be_built(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    config = model_cfg()
    change(config)
    with pytest.raises(FailedPrecondition) as caught:
        build_model(OpenClipConfig(model=config, preprocess={}), tmp_path)
    assert caught.value.reason == "VERSION_UNFIT"
