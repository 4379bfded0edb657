"""Served vectors against plain open_clip in float32 on the CPU, from the version's own files."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

MIN_COSINE = 0.99999
MAX_DISTANCE_RATIO = 0.01


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far vectors are from their references."""

    cosine: float
    """Smallest cosine of a vector and its reference."""
    distance_ratio: float
    """Largest distance of the two, over the median distance between references."""
    nearest_is_own: bool
    """Whether each vector's nearest reference is its own."""

    @property
    def passed(self) -> bool:
        close = self.cosine >= MIN_COSINE and self.distance_ratio <= MAX_DISTANCE_RATIO
        return close and self.nearest_is_own

    def as_dict(self) -> dict[str, float | bool]:
        return {**asdict(self), "passed": self.passed}


def compare(served: NDArray[np.float32], reference: NDArray[np.float32]) -> Parity:
    """Both float32 of shape (n, dim), n >= 2, rows of unit length and all different."""
    own = np.linalg.norm(served - reference, axis=1)  # (n,)
    between = np.linalg.norm(reference[:, None] - reference[None], axis=2)  # (n, n)
    crossed = np.linalg.norm(served[:, None] - reference[None], axis=2)  # (n, n)
    upper = between[np.triu_indices(len(reference), k=1)]
    return Parity(
        cosine=float((served * reference).sum(axis=1).min()),
        distance_ratio=float(own.max() / np.median(upper)),
        nearest_is_own=bool((crossed.argmin(axis=1) == np.arange(len(served))).all()),
    )


class Reference:
    """open_clip's own model of a version folder."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        name = f"local-dir:{folder}"
        model, preprocess = open_clip.create_model_from_pretrained(name)
        self.model = model.to(device).eval()
        self.preprocess = preprocess
        self.tokenizer = open_clip.get_tokenizer(name)
        self.device = device

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 of shape (len(texts), dim), rows of unit length."""
        tokens = self.tokenizer(list(texts)).to(self.device)  # (n, context)
        rows: NDArray[np.float32] = self.model.encode_text(tokens, normalize=True).cpu().numpy()
        return rows

    @torch.inference_mode()
    def encode_images(self, files: Sequence[bytes]) -> NDArray[np.float32]:
        """float32 of shape (len(files), dim), rows of unit length."""
        images = [self.preprocess(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]
        pixels = torch.stack(images).to(self.device)  # (n, 3, height, width)
        rows: NDArray[np.float32] = self.model.encode_image(pixels, normalize=True).cpu().numpy()
        return rows
