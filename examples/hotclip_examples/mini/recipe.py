"""The model and how it is trained: everything that decides the weights, in one place."""

from __future__ import annotations

from typing import Any

from hotclip_server.training.config import AugmentConfig, TrainConfig

CONTEXT = 16
VOCABULARY = 6000

MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 24, "head_width": 64},
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "hf_tokenizer_name": "builtin-mini",
        "width": 128,
        "heads": 4,
        "layers": 2,
    },
}

PREPROCESS: dict[str, Any] = {
    "size": [64, 64],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}

TRAIN = TrainConfig(
    epochs=24,
    batch_size=320,
    learning_rate=2e-3,
    warmup=0.05,
    weight_decay=0.05,
    ema=0.02,
    positives="share",
    train_batch_norm=True,
    precision="bf16",
    seed=0,
    augment=AugmentConfig(
        crop=(0.9, 1.35),
        shift=0.06,
        rotate=12,
        brightness=0.25,
        grey=0.3,
        hue=0.3,
        outline=0.35,
        line_art=0.15,
        blur=0.15,
    ),
)
