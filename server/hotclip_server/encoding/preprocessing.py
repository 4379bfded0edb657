"""How an image becomes a model's input, said so that a client can do the same. No torch here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """open_clip's evaluation transform before it normalises."""

    height: int
    """Pixels of the input."""
    width: int
    """Pixels of the input."""
    resize_mode: str
    """ "shortest", "longest" or "squash"."""
    interpolation: str
    """ "bicubic" or "bilinear", antialiased as in Pillow."""
    fill_color: int = 0
    """Every channel of what "longest" pads."""

    @property
    def id(self) -> str:
        """Names all of it: sha256, 16 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]
