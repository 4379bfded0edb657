"""Making the model's input of an image here, so that less goes over a thin link.

The same steps as open_clip's evaluation transform, with Pillow (the extra `image`), which is
imported when it is first used.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hotclip.errors import FailedPrecondition
from hotclip_proto.v1 import types_pb2

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
else:
    PilImage = Any

MAX_PIXELS = 50_000_000
"""Larger images, or what resizing makes of very long ones, go as they are."""

_FORMATS = ("JPEG", "PNG", "WEBP")
UNREADABLE = (
    OSError,
    SyntaxError,  # Pillow's word for a broken PNG
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    struct.error,
    zlib.error,
)
"""What Pillow raises at a broken or strange image."""


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """How a version makes its input of an image: `VersionInfo.image_preprocessing`."""

    id: str
    """Equal ids mean equal preprocessing."""
    height: int
    """Pixels of the input."""
    width: int
    """Pixels of the input."""
    resize_mode: str
    """"shortest", "longest" or "squash"."""
    interpolation: str
    """"bicubic" or "bilinear"."""
    fill_color: int
    """Every channel of what "longest" pads, 0 to 255."""

    @property
    def nbytes(self) -> int:
        """Of the pixels that are sent."""
        return self.height * self.width * 3


def require_pillow() -> None:
    """Says what to install if Pillow is missing.

    Raises:
        FailedPrecondition: It is; reason PILLOW_MISSING.
    """
    try:
        import PIL.Image  # noqa: F401 - whether it is there
    except ImportError as error:
        raise FailedPrecondition(
            "resizing here needs Pillow: pip install 'hotclip[image]'", reason="PILLOW_MISSING"
        ) from error


def smaller(
    item: types_pb2.EncodeItem, to: ImagePreprocessing, max_pixels: int = MAX_PIXELS
) -> types_pb2.EncodeItem:
    """The item with its image as the model's pixels, if these are fewer bytes.

    Anything else comes back as it is, also a file that can't be read: the server says why.
    """
    if len(item.image) <= to.nbytes:
        return item
    from PIL import Image as Pil

    try:
        with Pil.open(io.BytesIO(item.image), formats=_FORMATS) as picture:
            if not fits(picture, to, max_pixels):
                return item
            return tensor_item(resized(picture, to), to)
    except (Pil.DecompressionBombError, Pil.DecompressionBombWarning, *UNREADABLE):
        return item


def smaller_picture(
    decoded: Callable[[], PilImage],
    encoded: Callable[[], types_pb2.EncodeItem],
    to: ImagePreprocessing,
    max_pixels: int = MAX_PIXELS,
) -> types_pb2.EncodeItem:
    """As `smaller`, of an image that is not encoded yet; raises what `encoded` raises."""
    try:
        picture = decoded()
        few = picture.width * picture.height <= to.width * to.height
        if not few and fits(picture, to, max_pixels):
            return tensor_item(resized(picture, to), to)
    except UNREADABLE:
        return encoded()  # or says why not
    return encoded()


def tensor_item(pixels: NDArray[np.uint8], to: ImagePreprocessing) -> types_pb2.EncodeItem:
    """uint8 (height, width, 3), with the id of what made it."""
    item = types_pb2.EncodeItem()
    item.tensor.data, item.tensor.preprocessing_id = pixels.tobytes(), to.id
    item.tensor.height, item.tensor.width, _ = pixels.shape
    return item


def fits(picture: PilImage, to: ImagePreprocessing, max_pixels: int) -> bool:
    """Whether neither the image nor what resizing makes of it is too large."""
    height, width = _resized_size(picture.width, picture.height, to)
    return max(picture.width * picture.height, width * height) <= max_pixels


def resized(picture: PilImage, to: ImagePreprocessing) -> NDArray[np.uint8]:
    """uint8 RGB (to.height, to.width, 3); within one level of what the server makes."""
    from PIL import Image as Pil

    height, width = _resized_size(picture.width, picture.height, to)
    bilinear = to.interpolation == "bilinear" and not _is_oblong(to)
    how = Pil.Resampling.BILINEAR if bilinear else Pil.Resampling.BICUBIC
    if picture.size != (width, height):
        picture = picture.resize((width, height), how)
    picture = _crop_or_pad(picture, to)  # a new image: the caller's stays as it is
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        del picture.info["transparency"]  # convert("RGB") ignores it too, with a warning
    return np.asarray(picture.convert("RGB"))


def _is_oblong(to: ImagePreprocessing) -> bool:
    """open_clip resizes to such inputs in a way of its own, always bicubic."""
    return to.resize_mode == "shortest" and to.height != to.width


def _resized_size(width: int, height: int, to: ImagePreprocessing) -> tuple[int, int]:
    """(height, width) before the middle is cut out.

    As torchvision.transforms.Resize for square inputs, else as open_clip's ResizeKeepRatio.
    """
    if to.resize_mode == "squash":
        return to.height, to.width
    if to.resize_mode == "shortest" and not _is_oblong(to):
        long = int(to.height * max(width, height) / min(width, height))
        return (long, to.width) if width <= height else (to.height, long)
    ratios = height / to.height, width / to.width
    ratio = max(ratios) if to.resize_mode == "longest" else min(ratios)
    return round(height / ratio), round(width / ratio)


def _crop_or_pad(picture: PilImage, to: ImagePreprocessing) -> PilImage:
    """The middle; where the image is smaller, with borders (torchvision's center_crop)."""
    from PIL import ImageOps

    missing_x, missing_y = max(to.width - picture.width, 0), max(to.height - picture.height, 0)
    if missing_x or missing_y:
        level = to.fill_color if to.resize_mode == "longest" else 0
        channels = len(picture.getbands())
        fill = level if channels == 1 else (level,) * channels
        borders = (missing_x // 2, missing_y // 2, (missing_x + 1) // 2, (missing_y + 1) // 2)
        palette = picture.getpalette() if picture.mode == "P" else None
        picture = ImageOps.expand(picture, border=borders, fill=fill)
        if palette is not None:
            picture.putpalette(palette)
    left = round((picture.width - to.width) / 2.0)
    top = round((picture.height - to.height) / 2.0)
    return picture.crop((left, top, left + to.width, top + to.height))
