"""What the rest of the server knows of an encoder. No torch here.

Work flows `prepare_*` (CPU pool, one item) → `Batcher` → `encode` (device thread, one
batch of one tower of one version).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hotclip_server.encoding.engines.protocol import EngineChoice, EngineFigures
from hotclip_server.encoding.preprocessing import ImagePreprocessing


class Tower(Enum):
    """One of the two encoders of a CLIP model."""

    TEXT = "clip-text"
    VISION = "clip-vision"


class Truncate(Enum):
    """Which tokens of a text that is longer than the context are kept."""

    END = "end"
    """The first ones, as open_clip does."""
    START = "start"
    """The last ones; tokens that mark start and end keep their places."""
    NONE = "none"
    """All or nothing: a longer text is refused."""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What a version is, apart from its weights.

    `text_encoder_id` and `vision_encoder_id` are fingerprints of one tower each: fp32
    weights, preprocessing or tokenizer, pooling, dimension, normalisation. `space_id` is
    the hash of the two.
    """

    architecture: str
    dim: int
    """Elements of a vector."""
    image_size: int
    """Height and width of the model's input in pixels."""
    context_length: int
    """Longest text in tokens."""
    text_encoder_id: str
    vision_encoder_id: str
    space_id: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """One item ready for the device.

    array: int64 token ids of shape (length,) without padding for clip-text, or uint8 RGB
        (height, width, 3) of the model's input size for clip-vision.
    key: Names what the tower sees: items of one version with the same key have the same vector.
        16 bytes, made here because items are prepared off the event loop (0.1 ms an image).
    """

    tower: Tower
    array: NDArray[Any]
    key: bytes = field(init=False, compare=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(self.tower.value.encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.array).data)
        object.__setattr__(self, "key", digest.digest())

    @classmethod
    def keyed(cls, tower: Tower, array: NDArray[Any], key: bytes) -> Prepared:
        """One whose key was made where it was prepared."""
        prepared = object.__new__(cls)
        object.__setattr__(prepared, "tower", tower)
        object.__setattr__(prepared, "array", array)
        object.__setattr__(prepared, "key", key)
        return prepared

    @property
    def length(self) -> int:
        """Tokens of a text; 1 for an image."""
        return len(self.array) if self.tower is Tower.TEXT else 1

    @property
    def nbytes(self) -> int:
        """Bytes held while it waits."""
        return int(self.array.nbytes)


class Encoder(Protocol):
    """Both towers of one version, resident and warm."""

    @property
    def spec(self) -> EncoderSpec:
        """What it is."""

    @property
    def image_preprocessing(self) -> ImagePreprocessing:
        """How an image becomes the input."""

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine in the softmax of `Rank` (exp of the learnt parameter)."""

    def prepare_text(self, text: str, truncate: Truncate = Truncate.END) -> Prepared:
        """Tokenises. Thread-safe.

        Raises:
            InvalidArgument: longer than the context where `truncate` is NONE, reason
                TEXT_TOO_LONG; a tokenizer that can't do `truncate`, reason TRUNCATE_UNSUPPORTED.
        """

    def prepare_image(self, data: bytes) -> Prepared:
        """Decodes, resizes, crops as open_clip does. Thread-safe.

        Raises:
            InvalidArgument: not a JPEG, PNG or WebP, damaged, or over the limits; reasons
                IMAGE_UNREADABLE, IMAGE_FORMAT, IMAGE_TOO_LARGE.
        """

    def prepare_tensor(self, data: bytes, height: int, width: int) -> Prepared:
        """Takes uint8 RGB pixels of the model's input size.

        Raises:
            InvalidArgument: wrong size.
        """

    def encode(self, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        """Runs one batch, which may be empty; blocks; device thread only.

        Returns:
            float32 of shape (len(batch), dim): features as the tower gives them, not normalised.
        """

    def engine(self, tower: Tower) -> EngineChoice:
        """What runs a tower now; it may change between two batches."""

    def figures(self, tower: Tower) -> EngineFigures | None:
        """What was measured of that engine; None: nothing yet."""

    def close(self) -> None:
        """Frees the weights; no call may follow."""
