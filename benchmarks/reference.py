"""Plain open_clip in float32, from a version's own files."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


class Reference:
    """open_clip's own model of a version folder."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        name = f"local-dir:{folder}"
        model, preprocess = open_clip.create_model_from_pretrained(name)
        self.model = model.to(device).eval()
        self.preprocess = preprocess
        self.tokenizer = open_clip.get_tokenizer(name)
        self.device = device

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 of shape (len(texts), dim), rows of unit length."""
        return self.encode_tokens(self.tokens(texts))

    def encode_images(self, files: Sequence[bytes]) -> NDArray[np.float32]:
        """float32 of shape (len(files), dim), rows of unit length."""
        return self.encode_pixels(self.pixels(files))

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """int64 [n, context]."""
        tokens: Tensor = self.tokenizer(list(texts))
        return tokens

    def pixels(self, images: Sequence[bytes | NDArray[np.uint8]]) -> Tensor:
        """float32 [n, 3, height, width]: files, or uint8 RGB (height, width, 3).

        open_clip's transform converts to RGB itself, after it has resized: pictures with a
        palette or with transparency come out otherwise than if they were converted first.
        """
        opened = (
            Image.open(io.BytesIO(image)) if isinstance(image, bytes) else Image.fromarray(image)
            for image in images
        )
        return torch.stack([self.preprocess(image) for image in opened])

    @torch.inference_mode()
    def encode_tokens(self, tokens: Tensor) -> NDArray[np.float32]:
        """float32 (n, dim), rows of unit length."""
        features = self.model.encode_text(tokens.to(self.device), normalize=True)
        rows: NDArray[np.float32] = features.cpu().numpy()
        return rows

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor) -> NDArray[np.float32]:
        """float32 (n, dim), rows of unit length."""
        features = self.model.encode_image(pixels.to(self.device), normalize=True)
        rows: NDArray[np.float32] = features.cpu().numpy()
        return rows
