"""What an answer must be: vectors computed with plain open_clip from a version's own files.

Nothing here is shared with the server: the files of a version are an open_clip folder, and
open_clip itself loads and runs them, in fp32, one text or image at a time.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

COSINE = 0.99999
"""Least cosine to the golden vector that counts as the same."""
RELATIVE_DISTANCE = 0.01
"""Largest distance to it, as a share of the median distance between different vectors."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Unit vectors of the pool and of the index by one version, float32 (n, dim)."""

    texts: NDArray[np.float32]
    images: NDArray[np.float32]
    index: NDArray[np.float32]

    def agrees(self, rows: NDArray[np.float32], golden: NDArray[np.float32]) -> bool:
        """Whether every row equals its golden row within the parity rule."""
        cosine = (rows * golden).sum(axis=1)
        apart = np.linalg.norm(rows - golden, axis=1)
        return bool((cosine >= COSINE).all() and (apart <= self.tolerance).all())

    @property
    def tolerance(self) -> float:
        """The distance up to which two vectors count as equal."""
        return RELATIVE_DISTANCE * min(_median_distance(self.texts), _median_distance(self.images))


@torch.inference_mode()
def golden_vectors(
    folder: Path, texts: Sequence[str], images: Sequence[bytes], index: Sequence[bytes]
) -> Golden:
    """Runs the version stored in `folder` with plain open_clip."""
    source = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    tokenizer = open_clip.get_tokenizer(source)
    model.eval()

    def encode_image(data: bytes) -> NDArray[np.float32]:
        picture = preprocess(Image.open(io.BytesIO(data))).unsqueeze(0)
        row: NDArray[np.float32] = model.encode_image(picture, normalize=True)[0].numpy()
        return row

    def encode_text(text: str) -> NDArray[np.float32]:
        row: NDArray[np.float32] = model.encode_text(tokenizer([text]), normalize=True)[0].numpy()
        return row

    return Golden(
        texts=np.stack([encode_text(text) for text in texts]),
        images=np.stack([encode_image(data) for data in images]),
        index=np.stack([encode_image(data) for data in index]),
    )


def separation(one: Golden, other: Golden) -> float:
    """Least distance between what two versions make of the same input.

    Above the tolerance, an answer that agrees with one version can't agree with the other.
    """
    apart = [np.linalg.norm(one.texts - other.texts, axis=1).min()]
    apart.append(np.linalg.norm(one.images - other.images, axis=1).min())
    return float(min(apart))


def _median_distance(rows: NDArray[np.float32]) -> float:
    """Median distance between different rows of (n, dim), n > 1."""
    squared = np.clip(2 - 2 * rows @ rows.T, 0, None)
    return float(np.median(np.sqrt(squared[~np.eye(len(rows), dtype=bool)])))
