"""Small towers as engines are built from, with random weights, and inputs for them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg
from support.small_models import model_cfg, random_model, write_text_config

from hotclip_server.encoding.architecture import OpenClipConfig
from hotclip_server.encoding.engines.eager import EagerEngine
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.protocol import Tower
from hotclip_server.encoding.text_tower import TextTower

KINDS = ("clip", "quickgelu", "custom-text", "siglip", "resnet", "eos")
"""Of which both towers are open_clip's own."""
OTHERS = (("timm-vit", Tower.VISION), ("convnext", Tower.VISION), ("xlm-roberta", Tower.TEXT))
"""Towers of other libraries."""


def tower_source(
    kind: str, tower: Tower, *, seed: int = 0, device: str = "cpu", **changes: Any
) -> TowerSource:
    """`changes` go into the vision part of the config."""
    settings = model_cfg(kind)
    settings["vision_cfg"] |= changes
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    config = OpenClipConfig(model=settings, preprocess=preprocess)
    with tempfile.TemporaryDirectory() as folder:
        model: Any = random_model(config, write_text_config(Path(folder)), seed=seed).to(device)
    return TowerSource(
        model=model,
        tower=tower,
        text=TextTower(model, config.context_length),
        preprocess=PreprocessCfg(**model.visual.preprocess_cfg),
        device=torch.device(device),
        context_length=config.context_length,
    )


def inputs_of(source: TowerSource, count: int, *, seed: int = 0) -> list[NDArray[Any]]:
    """What `Engine.run` takes: texts of many lengths, or images."""
    generator = np.random.default_rng(seed)
    if source.tower is Tower.VISION:
        size = source.preprocess.size
        side = size if isinstance(size, int) else size[0]
        blocks = generator.integers(0, 256, (count, 4, 4, 3), np.uint8)
        return list(blocks.repeat(side // 4, 1).repeat(side // 4, 2))
    model: Any = source.model
    words = (model if hasattr(model, "vocab_size") else model.text).vocab_size
    padding = source.text.masked_id or 0
    texts = []
    for _ in range(count):
        ids = np.full(source.context_length, padding, np.int64)
        length = int(generator.integers(2, source.context_length + 1))
        ids[: length - 1] = generator.integers(1 + padding, words - 1, length - 1)
        ids[length - 1] = words - 1  # the end token
        texts.append(source.text.shorten(ids))
    return texts


def expected(source: TowerSource, batch: list[NDArray[Any]]) -> NDArray[np.float32]:
    """By plain open_clip, one item at a time."""
    engine = EagerEngine(source)
    return np.concatenate([engine.run([item]) for item in batch])
