"""Decoding JPEGs with libjpeg-turbo directly: the pixels are Pillow's, in less time."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

_FRAMES = {"JPEG", "MPO"}


def decode_jpeg(data: bytes, image: Image.Image) -> NDArray[np.uint8] | None:
    """The pixels of a JPEG that is grey or of three colours and without a flaw.

    Args:
        image: What Pillow opened from `data`, so that it has accepted the header.

    Returns:
        uint8 RGB (height, width, 3); None where Pillow has to decide: it converts CMYK in its
        own way, and of the damaged files it decodes some and refuses others.
    """
    if image.format not in _FRAMES or image.mode not in ("RGB", "L"):
        return None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=True)
    except (ValueError, KeyError):  # a warning of libjpeg, or a colour space unknown to it
        return None
    return pixels if pixels.shape[1::-1] == image.size else None
