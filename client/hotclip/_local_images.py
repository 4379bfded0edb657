"""Images as a local model takes them."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from hotclip._inputs import Image
from hotclip._resize import (
    MAX_PIXELS,
    UNREADABLE,
    ImagePreprocessing,
    fits,
    require_pillow,
    resized,
)
from hotclip.errors import InvalidArgument


def pixels_of(image: Image, to: ImagePreprocessing, field: str) -> NDArray[np.uint8]:
    """uint8 RGB (height, width, 3), within one level of what the server makes of it.

    Raises:
        InvalidArgument: It can't be read, or is too large.
        FailedPrecondition: Pillow is missing; reason PILLOW_MISSING.
    """
    require_pillow()
    from PIL import Image as Pil

    item = image.load()
    if item.WhichOneof("content") == "tensor":
        tensor = item.tensor
        if (tensor.height, tensor.width) != (to.height, to.width):
            problem = f"{tensor.height} x {tensor.width} pixels, not {to.height} x {to.width}"
            raise InvalidArgument.field(field, problem, reason="TENSOR_SHAPE")
        return np.frombuffer(tensor.data, np.uint8).reshape(to.height, to.width, 3)
    try:
        with Pil.open(io.BytesIO(item.image), formats=("JPEG", "PNG", "WEBP")) as picture:
            if not fits(picture, to, MAX_PIXELS):
                raise InvalidArgument.field(field, "too many pixels", reason="IMAGE_TOO_LARGE")
            return resized(picture, to)
    except InvalidArgument:
        raise
    except (Pil.DecompressionBombError, Pil.DecompressionBombWarning, *UNREADABLE) as error:
        raise InvalidArgument.field(field, str(error), reason="IMAGE_UNREADABLE") from error
