"""What is told of backbones is what open_clip builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from transformers import XLMRobertaConfig, XLMRobertaModel

import hotclip_server.encoding
from hotclip_server.models.backbones import BACKBONES, Backbone

MINI = Path(hotclip_server.encoding.__file__).parent / "builtin/mini/open_clip_config.json"
XLM_ROBERTA = {
    "xlm-roberta-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "xlm-roberta-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}


def config_of(backbone: Backbone) -> dict[str, Any]:
    architecture, _, tag = backbone.source.partition("::")
    if not tag:
        found: dict[str, Any] = json.loads(MINI.read_text("utf-8"))["model_cfg"]
        return found
    assert tag in open_clip.list_pretrained_tags_by_model(architecture)
    return open_clip.get_model_config(architecture)


def parameters_of(config: dict[str, Any]) -> int:
    """Of the model built without memory; a text tower of the hub's from its own sizes."""
    text = dict(config["text_cfg"])
    hub = text.pop("hf_model_name", None)
    if hub is None:
        kind = open_clip.CustomTextCLIP if config.get("custom_text") else CLIP
        known = {k: v for k, v in config.items() if k != "custom_text"}
        with torch.device("meta"):
            return sum(p.numel() for p in kind(**known).parameters())
    with torch.device("meta"):
        shape = XLMRobertaConfig(
            vocab_size=250_002,
            max_position_embeddings=514,
            intermediate_size=4 * XLM_ROBERTA[hub]["hidden_size"],
            type_vocab_size=1,
            **XLM_ROBERTA[hub],
        )
        tower = XLMRobertaModel(shape, add_pooling_layer=False)
        width, dim = shape.hidden_size, config["embed_dim"]
        between = (width + dim) // 2  # of the projection, an MLP of two layers
        tokens = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}
        vision = CLIP(dim, config["vision_cfg"], tokens).visual
    counted = sum(p.numel() for part in (tower, vision) for p in part.parameters())
    return counted + between * (width + dim) + 1  # 1: the logit scale


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.source)
def test_facts_are_those_of_the_architecture(backbone: Backbone) -> None:
    config = config_of(backbone)
    assert backbone.parameters == parameters_of(config)
    assert backbone.dim == config["embed_dim"]
    assert backbone.image_size == config["vision_cfg"]["image_size"]
    assert backbone.context_length == config["text_cfg"].get("context_length", 77)
    assert backbone.description.endswith(".")
    assert backbone.license


def test_the_built_in_comes_first_then_the_smallest() -> None:
    assert BACKBONES[0].source == "builtin:mini"
    sizes = [backbone.parameters for backbone in BACKBONES[1:]]
    assert [round(size / 1e7) for size in sizes] == sorted(round(size / 1e7) for size in sizes)
