"""64 different texts and images that engines are compared on: the same ones every time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INPUTS = 64
SEED = 20_240_229
_COARSE = 32
"""Side of the pictures before they are blown up to a model's input."""

_THINGS = (
    "a cat",
    "two red apples",
    "the old town of Köln",
    "a diagram",
    "猫の写真",
    "кошка",
    "🐈 + 🐕",
)
_WHERE = ("", "on a wooden table", "in the morning light, oil on canvas", "beside a quiet lake")


def texts() -> list[str]:
    """From one word to longer than a short context, in several scripts."""
    made = [
        f"{number}: a photo of {_THINGS[number % len(_THINGS)]} {_WHERE[number % len(_WHERE)]}"
        + " and one more" * (number % 5)
        for number in range(INPUTS - 2)
    ]
    return ["cat", *made, "a long story of many words " * 8]


def images(side: int) -> NDArray[np.uint8]:
    """(64, side, side, 3): shading, coloured discs with edges and noise, like photographs.

    Noise alone would not do: to a model all noise looks alike.
    """
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[0:_COARSE, 0:_COARSE] / _COARSE
    made = np.empty((INPUTS, _COARSE, _COARSE, 3), np.float32)
    for picture in made:
        for channel in range(3):
            a, b, c, d = rng.uniform(1, 20, 4)
            picture[..., channel] = 127 + 60 * np.sin(a * x + b * y) + 40 * np.cos(c * x - d * y)
        for _ in range(int(rng.integers(2, 8))):
            cx, cy, radius = rng.uniform(0, 1, 3) * (1, 1, 0.3)
            disc = (x - cx) ** 2 + (y - cy) ** 2 < radius * radius
            picture[disc] = 0.4 * picture[disc] + rng.uniform(0, 150, 3)
        picture += rng.normal(0, 10, picture.shape)
    at = np.arange(side) * _COARSE // side
    large: NDArray[np.uint8] = made.clip(0, 255).astype(np.uint8)[:, at][:, :, at]
    return large
