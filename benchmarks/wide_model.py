"""A small model of many dimensions, for collections of vectors that are as long as those of
large models."""

import json
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def write_wide_model(folder: Path, dim: int) -> None:
    """Random weights in open_clip's own files."""
    folder.mkdir(parents=True)
    config = {"embed_dim": dim, "vision_cfg": VISION, "text_cfg": TEXT}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(**config)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.ndim > 1 and "embedding" in name:
                    value.normal_(std=0.5)  # different inputs shall have different vectors
    content = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
