"""What an answer must be: vectors computed with plain open_clip from a version's own files.

Nothing here is shared with the server: the files of a version are an open_clip folder, and
open_clip itself loads and runs them, in fp32.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

T = TypeVar("T")

BATCH = 64
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

    def of_images(pictures: Sequence[bytes]) -> NDArray[np.float32]:
        pixels = [preprocess(Image.open(io.BytesIO(data))) for data in pictures]
        return rows([model.encode_image(torch.stack(some), normalize=True) for some in cut(pixels)])

    return Golden(
        texts=rows([model.encode_text(tokenizer(some), normalize=True) for some in cut(texts)]),
        images=of_images(images),
        index=of_images(index),
    )


def cut(items: Sequence[T]) -> list[list[T]]:
    """Batches of at most BATCH items."""
    return [list(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]


def rows(blocks: Sequence[torch.Tensor]) -> NDArray[np.float32]:
    """The rows of all blocks, float32 (n, dim)."""
    found: NDArray[np.float32] = torch.cat(list(blocks)).float().numpy()
    return found


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
