"""What plain open_clip gives for fixed inputs, from the folder of one version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from support.pictures import encoded, photograph

from hotclip_proto.v1 import encode_pb2, types_pb2

TEXTS = tuple(
    f"a photo of {n} {what}" for n in range(8) for what in ("pears", "cats", "猫", "Äpfel")
)
IMAGES = tuple(encoded(photograph(seed, 96, 72)) for seed in range(32))
"""32 of each: the items that the load sends, texts first."""

ITEMS = tuple(
    [types_pb2.EncodeItem(text=text) for text in TEXTS]
    + [types_pb2.EncodeItem(image=image) for image in IMAGES]
)


@dataclass(frozen=True)
class Golden:
    """float32 (64, dim), a row an item of `ITEMS`; and how far a row may be off."""

    rows: NDArray[np.float32]
    allowed: NDArray[np.float64]

    def mistakes(self, response: encode_pb2.EncodeResponse, numbers: Sequence[int]) -> list[str]:
        """What is wrong with the answer to the items of these numbers."""
        block = response.vectors
        if response.errors or block.count != len(numbers):
            return [f"{block.count} rows for {len(numbers)} items, errors {response.errors}"]
        ours = np.frombuffer(block.data, "<f4").reshape(block.count, block.dim)
        distance = np.linalg.norm(ours[:, None] - self.rows[None], axis=2)
        wanted = np.asarray(numbers)
        own = distance[np.arange(len(wanted)), wanted]
        far = own > self.allowed[wanted]
        mixed = distance.argmin(1) != wanted
        return [
            f"item {number} of version {response.version} is off by {error:.2g}"
            for number, error, bad in zip(numbers, own, far | mixed, strict=True)
            if bad
        ]


def golden(folder: Path) -> Golden:
    """Computes them; `folder` has open_clip's local-dir layout."""
    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    with torch.no_grad():
        text = model.encode_text(open_clip.get_tokenizer(name)(list(TEXTS)), normalize=True)
        batch = torch.stack([transform(Image.open(BytesIO(image))) for image in IMAGES])
        image = model.encode_image(batch, normalize=True)
    towers = [text.float().numpy(), image.float().numpy()]
    allowed = [np.full(len(rows), 0.01 * median_distance(rows)) for rows in towers]
    return Golden(np.concatenate(towers), np.concatenate(allowed))


def median_distance(rows: NDArray[np.float32]) -> float:
    """Between the embeddings of different inputs."""
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    return float(np.median(distance[np.triu_indices(len(rows), 1)]))
