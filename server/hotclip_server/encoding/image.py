"""From the bytes of an image file to the pixels that a vision tower takes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from open_clip.transform import MaybeConvertMode, PreprocessCfg, image_transform_v2
from PIL import Image

from hotclip_server.encoding.image_header import DamagedHeader, UnknownFormat, read_header
from hotclip_server.encoding.jpeg import decode_jpeg
from hotclip_server.encoding.resize import Resizer
from hotclip_server.errors import InvalidArgument

_DECODE_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's word for a broken PNG
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    TypeError,
)


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What is refused before it is decoded."""

    max_bytes: int = 20 << 20
    """Longest file in bytes."""
    max_pixels: int = 50_000_000
    """Most pixels, of the image itself and of what resizing makes of it before the crop."""


class ImagePreparer:
    """open_clip's own transform, up to and without the conversion to float. Thread-safe.

    Most images take a quicker way, whose pixels are at most one level off.
    """

    def __init__(self, preprocess: Mapping[str, Any], limits: ImageLimits) -> None:
        config = PreprocessCfg(**preprocess)
        size = config.size
        self._limits = limits
        self._resize_mode = config.resize_mode
        self.height: int = size if isinstance(size, int) else size[0]
        self.width: int = size if isinstance(size, int) else size[1]
        steps = image_transform_v2(config, is_train=False).transforms
        kinds = [type(step) for step in steps]
        self._resize_and_crop = steps[: kinds.index(MaybeConvertMode)]
        can_do = Resizer.can_do(self._resize_and_crop)
        self._resizer = Resizer(self._resize_and_crop) if can_do else None

    def prepare(self, data: bytes) -> NDArray[np.uint8]:
        """Decodes the first frame, resizes and crops.

        Returns:
            uint8 RGB (height, width, 3) of the model's input size.

        Raises:
            InvalidArgument: reasons IMAGE_UNREADABLE, IMAGE_FORMAT, IMAGE_TOO_LARGE.
        """
        self._check(data)
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
                # Of a file with several headers Pillow may have taken another one's size.
                self._check_size(*image.size)
                return self._pixels(data, image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(str(error)) from error
        except _DECODE_ERRORS as error:
            raise InvalidArgument.field(
                "image", f"cannot be decoded: {error}", reason="IMAGE_UNREADABLE"
            ) from error

    def from_tensor(self, data: bytes, height: int, width: int) -> NDArray[np.uint8]:
        """Takes row-major uint8 RGB pixels of the model's input size.

        Raises:
            InvalidArgument: another size; reason TENSOR_SHAPE.
        """
        if (height, width) != (self.height, self.width):
            raise InvalidArgument.field(
                "tensor",
                f"is {height} x {width}, the model takes {self.height} x {self.width}",
                reason="TENSOR_SHAPE",
            )
        if len(data) != height * width * 3:
            raise InvalidArgument.field(
                "tensor.data",
                f"has {len(data)} bytes, {height} x {width} x 3 need {height * width * 3}",
                reason="TENSOR_SHAPE",
            )
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def _check(self, data: bytes) -> None:
        if len(data) > self._limits.max_bytes:
            raise _too_large(f"{len(data)} bytes, the limit is {self._limits.max_bytes}")
        try:
            header = read_header(data)
        except UnknownFormat as error:
            raise InvalidArgument.field(
                "image", "is not a JPEG, PNG or WebP file", reason="IMAGE_FORMAT"
            ) from error
        except DamagedHeader as error:
            raise InvalidArgument.field("image", str(error), reason="IMAGE_UNREADABLE") from error
        self._check_size(header.width, header.height)

    def _check_size(self, width: int, height: int) -> None:
        pixels = max(width * height, self._resized_pixels(width, height))
        if pixels > self._limits.max_pixels:
            raise _too_large(
                f"{width} x {height} pixels need {pixels} in memory, "
                f"the limit is {self._limits.max_pixels}"
            )

    def _resized_pixels(self, width: int, height: int) -> int:
        """A strip of 1 x 60,000 becomes 224 x 13,440,000 before it is cropped."""
        if self._resize_mode != "shortest":
            return self.width * self.height
        scale = max(self.width / width, self.height / height)
        return int(width * scale) * int(height * scale)

    def _pixels(self, data: bytes, image: Image.Image) -> NDArray[np.uint8]:
        pixels = decode_jpeg(data, image)
        sure = self._resizer is not None and self._resizer.is_sure_of(*image.size[::-1])
        if self._resizer is not None and sure and image.mode in ("RGB", "L"):
            if pixels is None:
                image.load()  # numpy would hide the errors of decoding
                pixels = np.atleast_3d(np.array(image))
            resized = self._resizer(pixels)
            return resized if resized.shape[2] == 3 else resized.repeat(3, axis=2)
        if pixels is not None:
            image = Image.fromarray(pixels)
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            del image.info["transparency"]  # convert("RGB") ignores it too, with a warning
        for step in self._resize_and_crop:
            image = step(image)
        return np.asarray(image.convert("RGB"))


def _too_large(problem: str) -> InvalidArgument:
    return InvalidArgument.field("image", problem, reason="IMAGE_TOO_LARGE")
