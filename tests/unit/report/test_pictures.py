"""Thumbnails are small, of few bytes, and hold nothing of the original but its pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hotclip_server.report.pictures import SIDE, thumbnail


def encoded(image: Image.Image, format_: str = "PNG", **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **how)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.mark.parametrize(("width", "height"), [(2000, 1000), (37, 900), (SIDE, SIDE), (1, 1)])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_bounded_in_pixels_and_bytes(width: int, height: int, format_: str) -> None:
    small = thumbnail(encoded(noise(width, height), format_))
    assert max(opened(small).size) <= SIDE
    assert len(small) < 12_000


def test_transparent_becomes_white() -> None:
    clear = Image.new("RGBA", (50, 50), (200, 0, 0, 0))
    assert np.asarray(opened(thumbnail(encoded(clear)))).min() > 250


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK", "1", "I;16"])
def test_every_kind_of_pixels(mode: str) -> None:
    image = (
        noise(40, 30, "L").convert("I").convert("I;16")
        if mode == "I;16"
        else (noise(40, 30).convert(mode))
    )
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    assert opened(thumbnail(data)).size == (40, 30)


def test_metadata_is_left_behind() -> None:
    exif = Image.Exif()
    exif[0x010E] = "<script>secret</script>"
    data = encoded(noise(64, 64), "JPEG", exif=exif)
    assert b"secret" in data
    assert b"secret" not in thumbnail(data)


def test_what_is_no_picture_raises() -> None:
    with pytest.raises(OSError, match="cannot identify"):
        thumbnail(b"<svg onload=alert(1)>")
