"""open_clip's resize and crop for pixels in memory, by torch's kernel for bytes.

It is Pillow's algorithm with weights of 16 instead of 32 bits, on the calling thread alone and
without the interpreter lock. Pillow rounds and clips after the first of its two passes, so the
order of the passes is taken from it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import CenterCropOrPad, ResizeKeepRatio
from PIL import Image
from torch.nn import functional
from torchvision.transforms import CenterCrop, Resize

Size = tuple[int, int]
"""Height and width in pixels."""

LEAST_SCALE = 1.6
"""Pixels in per pixel out, in each direction that changes. Below it the second pass can make two
levels out of the rounding errors of the first: in 1 to 15 of 10^6 values of noise. Above it this
was seen in less than 1 of 10^6 values of noise that is black or white, and in no other."""

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class _Sized(NamedTuple):
    """As much of an image as `ResizeKeepRatio` asks for."""

    size: tuple[int, int]


class Resizer:
    """The geometric steps of one model's preprocessing. Thread-safe.

    Args:
        steps: Of open_clip's transform: a resize, and perhaps a crop.
    """

    def __init__(self, steps: Sequence[Any]) -> None:
        self._resize = steps[0]
        self._crop = steps[1] if len(steps) > 1 else None
        self._mode: str = self._resize.interpolation.value

    @staticmethod
    def can_do(steps: Sequence[Any]) -> bool:
        """Whether these steps, on this processor, are known to give Pillow's pixels."""
        known = (Resize, ResizeKeepRatio), (CenterCrop, CenterCropOrPad)
        return (
            1 <= len(steps) <= 2
            and all(type(step) in kinds for step, kinds in zip(steps, known, strict=False))
            and steps[0].interpolation.value in _FILTERS
            and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
            and _equals_pillow(steps[0].interpolation.value)
        )

    def is_sure_of(self, height: int, width: int) -> bool:
        """Whether an image of this size comes out within one level of Pillow's."""
        new = self._new_size(height, width)
        return all(
            length == made or length >= LEAST_SCALE * made > 0
            for length, made in zip((height, width), new, strict=True)
        )

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resizes and crops.

        Args:
            pixels: uint8 (height, width, channels), an array that may be written to.

        Returns:
            uint8 (height, width, channels) of the model's input.
        """
        height, width = pixels.shape[:2]
        new = self._new_size(height, width)
        size: Size = new if self._crop is None else self._crop.size
        # What the crop drops after one pass need not go through the other.
        if _vertical_first((height, width), new):
            pixels = _middle(_pass(pixels, (new[0], width), self._mode), size[0], 0)
            pixels = _middle(_pass(pixels, (len(pixels), new[1]), self._mode), size[1], 1)
        else:
            pixels = _middle(_pass(pixels, (height, new[1]), self._mode), size[1], 1)
            pixels = _middle(_pass(pixels, (new[0], pixels.shape[1]), self._mode), size[0], 0)
        if pixels.shape[:2] == size:
            return pixels
        return _padded(pixels, size, getattr(self._crop, "fill", 0))

    def _new_size(self, height: int, width: int) -> Size:
        """Before the crop."""
        step = self._resize
        if type(step) is ResizeKeepRatio:
            new = step.get_params(_Sized((width, height)), step.size, step.longest)
            return new[0], new[1]
        if not isinstance(step.size, int):
            return step.size[0], step.size[1]
        # torchvision's: the shorter side gets the size, the longer one is rounded down.
        longer = int(step.size * max(height, width) / min(height, width))
        return (longer, step.size) if width <= height else (step.size, longer)


def _vertical_first(size: Size, new: Size) -> bool:
    """Pillow's choice since 13.0 (`ImagingResampleInner` in Resample.c)."""
    fewer_rows, fewer_columns = size[0] - new[0], size[1] - new[1]
    return fewer_rows > 0 and fewer_rows > 2 * fewer_columns


def _pass(pixels: NDArray[np.uint8], size: Size, mode: str) -> NDArray[np.uint8]:
    if pixels.shape[:2] == size:
        return pixels
    # In this order torch sees that the channels come last, and answers with such a tensor.
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    made = functional.interpolate(image, size, mode=mode, antialias=True)
    resized: NDArray[np.uint8] = made[0].permute(1, 2, 0).numpy()
    return resized


def _middle(pixels: NDArray[np.uint8], kept: int, axis: int) -> NDArray[np.uint8]:
    """Crops one axis, as torchvision rounds it. By numpy: torch's copy would take more threads."""
    spare = pixels.shape[axis] - kept
    if spare <= 0:
        return pixels
    start = round(spare / 2)
    part = slice(start, start + kept)
    return (pixels[part] if axis == 0 else pixels[:, part]).copy()  # lets go of what is cropped


def _padded(pixels: NDArray[np.uint8], size: Size, fill: int) -> NDArray[np.uint8]:
    height, width, channels = pixels.shape
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    padded = np.full((*size, channels), fill, np.uint8)
    padded[top : top + height, left : left + width] = pixels
    return padded


@cache
def _equals_pillow(mode: str) -> bool:
    """Tries both orders of passes on black-and-white noise, where the wrong one shows."""
    noise = 255 * np.random.default_rng(0).integers(0, 2, (60, 50, 3), np.uint8)
    for new in ((29, 35), (30, 35), (60, 20), (20, 50), (20, 70)):
        expected = np.asarray(Image.fromarray(noise).resize(new[::-1], _FILTERS[mode]))
        first = (new[0], 50) if _vertical_first((60, 50), new) else (60, new[1])
        made = _pass(_pass(noise, first, mode), new, mode)
        if np.abs(made.astype(int) - expected).max() > 2:
            return False
    return True
