"""Images made on the spot: textured like photographs, in every mode that files come in."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def photograph(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """RGB: smooth shading, coloured blobs with edges, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    pixels = np.zeros((height, width, 3))
    for channel in range(3):
        a, b, c, d = rng.uniform(1, 25, 4)
        pixels[..., channel] = 127 + 60 * np.sin(a * x + b * y) + 40 * np.cos(c * x - d * y)
    for _ in range(int(rng.integers(3, 9))):
        cx, cy, r = rng.uniform(0, 1, 3) * (1, height / width, 0.3)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < r * r
        pixels[inside] = 0.5 * pixels[inside] + rng.uniform(0, 127, 3)
    pixels += rng.normal(0, 12, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def every_mode() -> dict[str, bytes]:
    """Files in each mode and format that Pillow writes, by a name for the test."""
    base = photograph(1)
    alpha = photograph(2).convert("L")
    with_alpha = base.copy()
    with_alpha.putalpha(alpha)
    grey_alpha = base.convert("LA")
    grey_alpha.putalpha(alpha)
    palette = base.quantize(64)
    deep = (np.asarray(base.convert("L"), np.uint16) * 257).copy()
    frames = [photograph(seed) for seed in (3, 4)]
    return {
        "jpeg": encoded(base, "JPEG", quality=90),
        "jpeg-progressive": encoded(base, "JPEG", progressive=True),
        "jpeg-grey": encoded(base.convert("L"), "JPEG"),
        "jpeg-cmyk": encoded(base.convert("CMYK"), "JPEG"),
        "jpeg-rotated": encoded(base, "JPEG", exif=_orientation(6)),
        "png": encoded(base),
        "png-grey": encoded(base.convert("L")),
        "png-grey-alpha": encoded(grey_alpha),
        "png-alpha": encoded(with_alpha),
        "png-palette": encoded(palette),
        "png-palette-one-transparent": encoded(palette, transparency=3),
        "png-palette-alpha": encoded(palette, transparency=bytes(range(64))),
        "png-bits": encoded(base.convert("1")),
        "png-16": encoded(Image.fromarray(deep)),
        "png-animated": encoded(frames[0], save_all=True, append_images=frames[1:]),
        "webp": encoded(base, "WEBP"),
        "webp-lossless": encoded(base, "WEBP", lossless=True),
        "webp-alpha": encoded(with_alpha, "WEBP"),
        "webp-animated": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
    }


def _orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()
