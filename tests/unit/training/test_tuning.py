"""What each method changes, and that low-rank changes are exactly what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hub_files import xlm_roberta
from support.small_models import model_cfg, random_model
from torch import Tensor, nn

from hotclip_server.encoding.architecture import OpenClipConfig
from hotclip_server.training.adapters import Adapters
from hotclip_server.training.average import WeightAverage
from hotclip_server.training.clip import Clip
from hotclip_server.training.config import AugmentConfig, LoraConfig, TrainConfig
from hotclip_server.training.evaluate import embed_pixels
from hotclip_server.training.events import Step
from hotclip_server.training.optim import make_optimizer
from hotclip_server.training.selection import is_image, is_projection, is_text
from hotclip_server.training.trainer import Trainer, train
from hotclip_server.training.tuning import tuning_of
from tests.unit.training.tiny import colours, tiny_clip, weights

FAST = TrainConfig(
    max_steps=4, batch_size=6, learning_rate=1e-2, ema=0.5, augment=AugmentConfig(crop=(1.0, 1.0))
)
LORA = replace(FAST, method="lora")
ATTENTION = ("attn.in_proj_weight", "attn.qkv.weight", "query.weight", "key.weight", "value.weight")
POOLING = (*(f"attnpool.{part}_proj.weight" for part in "qkv"), "attn_pool.kv.weight")


def small_model(kind: str, folder: Path) -> nn.Module:
    config = model_cfg("custom-text" if kind in ("timm", "hf") else kind)
    if kind == "timm":
        config["vision_cfg"] = {
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_pool": "token",
            "timm_proj": "linear",
            "image_size": 32,
        }
    if kind == "hf":
        xlm_roberta(folder, layers=2, width=64)
        config["text_cfg"] = {"hf_model_name": "small/text", "hf_proj_type": "mlp"}
        config["text_cfg"] |= {"hf_pooler_type": "mean_pooler"}
    return random_model(OpenClipConfig(model=config, preprocess={}), folder, seed=0)


def changed(before: dict[str, Tensor], clip: Clip) -> set[str]:
    after = weights(clip)
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["clip", "resnet", "timm", "hf", "siglip"])
def test_merged_weights_are_base_plus_product(kind: str, dora: bool, tmp_path: Path) -> None:
    model = small_model(kind, tmp_path)
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    config = replace(LORA, lora=LoraConfig(rank=2, alpha=4.0, dora=dora))
    tuning = tuning_of(model, config)
    assert isinstance(tuning, Adapters)
    moved = {name for name in tuning.moved if not name.startswith("logit_")}
    assert moved
    assert any(map(is_text, moved))
    assert any(map(is_image, moved))
    assert all(name.endswith((*ATTENTION, *POOLING)) for name in moved)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, factor in tuning.parameters.items():
            if name.startswith("lora."):
                factor.add_(torch.randn(factor.shape, generator=generator), alpha=0.1)
    tuning.apply()
    for name, value in model.named_parameters():
        if name not in moved:
            assert torch.equal(value, base[name]), name
            continue
        merged = base[name].double()
        for rows in [key for key in tuning.parameters if key.startswith(f"lora.{name}.")]:
            if not rows.endswith(".up"):
                continue
            stem = rows.removesuffix(".up")
            start = int(stem.rpartition(".")[2])
            up = tuning.parameters[f"{stem}.up"].double()
            part = slice(start, start + len(up))
            merged[part] += 2 * up @ tuning.parameters[f"{stem}.down"].double()
            if dora:
                lengths = tuning.parameters[f"{stem}.lengths"].double()
                merged[part] *= (lengths / merged[part].norm(dim=1))[:, None]
        torch.testing.assert_close(value.double(), merged, rtol=1e-5, atol=1e-6)


def test_gradients_of_factors_are_those_of_the_whole_formula():
    """Against autograd through W + s · up · down, on q and v of the fused matrix."""
    clip = tiny_clip()
    config = replace(LORA, lora=LoraConfig(rank=3, targets=("q", "v")))
    tuning = tuning_of(clip.model, config)
    name = "transformer.resblocks.0.attn.in_proj_weight"
    matrix = tuning.moved[name]
    base = matrix.detach().clone()
    part = "lora.transformer.resblocks.0.attn.in_proj_weight.64"
    up, down = (tuning.parameters[f"{part}.{factor}"] for factor in ("up", "down"))
    with torch.no_grad():
        up.normal_()
    tuning.apply()
    assert torch.equal(matrix[32:64], base[32:64])  # k is not wanted
    tokens = clip.tokenizer(["a", "bc", "d"])
    matrix.requires_grad_(True)
    clip.model.encode_text(tokens).square().sum().backward()
    whole = matrix.grad
    assert whole is not None
    tuning.gather()
    assert matrix.grad is None
    torch.testing.assert_close(up.grad, whole[64:] @ down.detach().T)
    torch.testing.assert_close(down.grad, up.detach().T @ whole[64:])


def test_the_optimizer_holds_the_factors_alone():
    clip = tiny_clip()
    tuning = tuning_of(clip.model, LORA)
    optimizer = make_optimizer(tuning.parameters, LORA)
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    # q, k and v of one block of each tower, 32 wide, rank 2, and the logit scale.
    assert held == 2 * 3 * 2 * (32 + 32) + 1
    assert WeightAverage(tuning, 3)._average.keys() == tuning.parameters.keys()


@pytest.mark.parametrize("resnet", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_low_rank_changes_stay_low_rank_through_training(resnet: bool, dora: bool):
    clip = tiny_clip(resnet=resnet)
    before = weights(clip)
    list(train(clip, colours(), replace(LORA, lora=LoraConfig(rank=1, dora=dora))))
    after = changed(before, clip)
    assert after - {"logit_scale"}
    for name in after - {"logit_scale"}:
        assert name.endswith((*ATTENTION, *POOLING))
        if not dora:
            difference = (weights(clip)[name] - before[name]).double()
            parts = difference.chunk(3) if name.endswith("in_proj_weight") else [difference]
            for part in parts:
                sizes = torch.linalg.svdvals(part)
                assert sizes[1] < 1e-3 * sizes[0] or sizes[0] < 1e-6


def test_a_row_of_zeros_has_no_direction_to_learn_but_harms_nothing():
    clip = tiny_clip()
    name = "transformer.resblocks.0.attn.in_proj_weight"
    with torch.no_grad():
        clip.model.get_parameter(name)[5] = 0
    before = weights(clip)
    list(train(clip, colours(), replace(LORA, lora=LoraConfig(rank=1, dora=True))))
    after = weights(clip)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    assert not torch.equal(after[name], before[name])


def test_each_method_changes_what_it_says():
    for method, allowed in (
        ("full", lambda name: True),
        ("projection", is_projection),
        ("lit", is_text),
        ("lora", lambda name: name.endswith("in_proj_weight")),
    ):
        clip = tiny_clip()
        before = weights(clip)
        config: Any = replace(FAST, method=method, weight_decay=0.0)
        list(train(clip, colours(), config))
        names = changed(before, clip) - {"logit_scale"}
        assert names, method
        assert all(map(allowed, names)), method
        expected = {name for name in before if allowed(name)} - {"logit_scale", "attn_mask"}
        assert names == expected, method


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"method": "lit"}, is_text),
        ({"lock_text": True}, is_image),
        ({"method": "projection"}, is_projection),
        ({"freeze_layers": 1}, lambda name: "resblocks.0." not in name),
    ],
)
def test_what_stays_as_it_is_is_in_no_state(
    changes: dict[str, Any], allowed: Callable[[str], bool]
) -> None:
    trainer = Trainer(tiny_clip(), colours(), replace(FAST, **changes))
    for event in trainer.run():
        if isinstance(event, Step):
            break
    kept = trainer.snapshot()
    names = kept.weights.keys() - {"logit_scale"}
    assert names
    assert all(map(allowed, names))
    assert kept.average.keys() == trainer.changed().keys() == names | {"logit_scale"}
    moments = {key.rpartition("/")[0] for key in kept.optimizer}
    assert moments == names | {"logit_scale"}


@pytest.mark.parametrize("resnet", [False, True])
def test_lit_leaves_the_image_tower_bit_for_bit(resnet: bool):
    clip = tiny_clip(resnet=resnet)
    side = 32 if resnet else 16
    pixels = torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8)
    before = embed_pixels(clip, pixels)
    kept = {name: value.clone() for name, value in clip.model.visual.state_dict().items()}
    list(train(clip, colours(), replace(FAST, method="lit")))
    after = clip.model.visual.state_dict()
    assert after.keys() == kept.keys()
    assert all(torch.equal(after[name], value) for name, value in kept.items())
    # How a product is summed depends on the threads that the process gives it at the moment.
    assert abs(embed_pixels(clip, pixels) - before).max() < 1e-6


def test_preserving_keeps_nearer_to_the_base():
    def distance(preserve: float) -> float:
        clip = tiny_clip()
        pixels = torch.randint(
            0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        before = embed_pixels(clip, pixels)
        list(train(clip, colours(), replace(FAST, max_steps=20, ema=0, preserve=preserve)))
        return float(((embed_pixels(clip, pixels) - before) ** 2).sum())

    assert distance(100) < 0.5 * distance(0)


def test_frozen_layers_and_rates_by_layer():
    config = model_cfg("clip")
    model = random_model(OpenClipConfig(model=config, preprocess={}), Path(), seed=0)
    frozen = replace(FAST, freeze_layers=1, layer_decay=0.5)
    tuning = tuning_of(model, frozen)
    assert "visual.conv1.weight" not in tuning.parameters
    assert "token_embedding.weight" not in tuning.parameters
    assert not any("resblocks.0." in name for name in tuning.parameters)
    optimizer = make_optimizer(
        tuning_of(model, replace(frozen, freeze_layers=0)).parameters, frozen
    )
    names = {id(value): name for name, value in model.named_parameters()}
    rates = {
        names[id(value)]: group["rate"]
        for group in optimizer.param_groups
        for value in group["params"]
    }
    assert rates["visual.proj"] == rates["ln_final.weight"] == 1
    assert rates["transformer.resblocks.1.ln_1.weight"] == 0.5
    assert rates["visual.transformer.resblocks.0.ln_1.weight"] == 0.25
    assert rates["token_embedding.weight"] == rates["visual.class_embedding"] == 0.125
    assert rates["logit_scale"] == 0.1
