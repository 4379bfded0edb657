"""A CLIP small enough to train in a test, and coloured squares to train it on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from PIL import Image
from torch import Tensor

from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.training.clip import Clip, clip_of
from hotclip_server.training.pairs import MemoryPairs, Pair

CONTEXT, LAST = 8, 127


def tokenizer(texts: list[str]) -> Tensor:
    """Bytes modulo the vocabulary, closed by its highest number."""
    tokens = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for row, text in enumerate(texts):
        values = [1 + byte % (LAST - 2) for byte in text.encode()[: CONTEXT - 1]]
        tokens[row, : len(values) + 1] = torch.tensor([*values, LAST])
    return tokens


def tiny_clip(*, resnet: bool = False, seed: int = 0) -> Clip:
    torch.manual_seed(seed)
    vit = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    conv = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    vision = conv if resnet else vit
    text = {
        "context_length": CONTEXT,
        "vocab_size": LAST + 1,
        "width": 32,
        "heads": 2,
        "layers": 1,
    }
    model = CLIP(16, vision, text)
    open_clip.model.set_model_preprocess_cfg(
        model,
        {"size": vision["image_size"], "mean": (0.5,) * 3, "std": (0.5,) * 3},
    )
    return clip_of(model.eval(), tokenizer)


def picture(colour: tuple[int, int, int], size: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def colours(count: int = 12) -> MemoryPairs:
    """Each of `count` different colours with its own name."""
    chosen = np.random.default_rng(0).integers(0, 256, (count, 3))
    images = {f"image{i}": picture(tuple(int(v) for v in c)) for i, c in enumerate(chosen)}
    return MemoryPairs([Pair(f"image{i}", f"name {i}") for i in range(count)], images)


def weights(clip: Clip, prefixes: Sequence[str] = ("",)) -> dict[str, Tensor]:
    return {
        name: tensor.clone()
        for name, tensor in clip.model.state_dict().items()
        if any(name.startswith(prefix) for prefix in prefixes)
    }


def stored_pairs(folder: Path, count: int) -> StoredDataset:
    """Pairs of images that nobody reads."""
    keys = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(count)]
    rows = [{"image": key, "text": f"a text of {key[:20]}"} for key in keys]
    index = [{"key": key, "start": 4 * at, "length": 4} for at, key in enumerate(keys)]
    files = {
        "pairs.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "images.jsonl": "".join(json.dumps(row) + "\n" for row in index).encode(),
        "images.bin": b"none",
    }
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "dataset.json").write_text(json.dumps({"sha256": sums}))
    return StoredDataset(folder)
