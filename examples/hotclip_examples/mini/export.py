"""Write the model as a folder that open_clip loads: `local-dir:<folder>`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from hotclip_examples.mini.recipe import MODEL, PREPROCESS
from hotclip_server.training.clip import Clip


def write_config(folder: Path) -> None:
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def save_model(clip: Clip, folder: Path) -> None:
    """Store the weights as fp16; raises ValueError if one is not finite then."""
    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in clip.model.state_dict().items()
    }
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise ValueError("a weight is not finite in fp16")
    temporary = folder / "open_clip_model.safetensors.tmp"
    save_file(weights, temporary)
    temporary.replace(folder / "open_clip_model.safetensors")
