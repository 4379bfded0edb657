"""What can be encoded: texts and images, in every form that a caller has them.

A str is always a text, never the name of a file; a file is a `pathlib.Path`.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hotclip._fetch import fetch
from hotclip._resize import (
    MAX_PIXELS,
    UNREADABLE,
    ImagePreprocessing,
    require_pillow,
    smaller,
    smaller_picture,
)
from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import types_pb2

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
else:
    PilImage = Any

MAX_IMAGE_BYTES = 20 << 20
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}


@dataclass(frozen=True)
class Text:
    """A text, said explicitly; the same as a plain str."""

    text: str


@dataclass(frozen=True)
class Image:
    """An image that is read when it is needed, so that long lists need little memory.

    Make one with `from_path`, `from_bytes`, `from_url`, `from_array`, `from_pil` or
    `from_pixels`; `resized` makes it small before it is sent.
    """

    origin: str
    """Where it comes from, for people."""
    load: Callable[[], types_pb2.EncodeItem]
    """Reads it; raises InvalidArgument (reason IMAGE_UNREADABLE) if that fails."""
    picture: Callable[[], PilImage] | None = None
    """Gives it decoded, where nothing is encoded yet; needs Pillow."""
    source: str = ""
    """Path or URL that it is read from; empty: it is in memory."""

    @classmethod
    def from_path(cls, path: Path | str) -> Image:
        """A JPEG, PNG or WebP file, read by the client."""
        file = Path(path)
        return cls(str(file), lambda: _encoded(_read(file)), source=str(file))

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Image:
        """An encoded JPEG, PNG or WebP."""
        copy = bytes(data)
        return cls(f"{len(copy)} bytes", lambda: _encoded(copy))

    @classmethod
    def from_url(
        cls, url: str, *, max_bytes: int = MAX_IMAGE_BYTES, timeout: float = 10.0
    ) -> Image:
        """An image behind an http or https URL, fetched by the client, never by the server.

        Args:
            url: Where it is.
            max_bytes: A longer answer is refused.
            timeout: Seconds without a byte after which fetching fails.
        """
        return cls(
            url, lambda: _encoded(fetch(url, max_bytes=max_bytes, timeout=timeout)), source=url
        )

    @classmethod
    def from_array(cls, pixels: NDArray[np.uint8]) -> Image:
        """Pixels (height, width, 3) uint8 RGB of any size; sent as a lossless PNG."""
        rgb = _rgb(pixels)
        return cls(f"array {rgb.shape}", lambda: _encoded(png(rgb)), lambda: _picture(rgb))

    @classmethod
    def from_pixels(cls, pixels: NDArray[np.uint8]) -> Image:
        """Pixels (height, width, 3) uint8 RGB that already have the model's input size.

        The server neither decodes nor resizes them; see VersionInfo.image_size.
        """
        rgb = _rgb(pixels)

        def load() -> types_pb2.EncodeItem:
            tensor = types_pb2.ImageTensor(
                data=rgb.tobytes(), height=rgb.shape[0], width=rgb.shape[1]
            )
            return types_pb2.EncodeItem(tensor=tensor)

        return cls(f"pixels {rgb.shape}", load)

    @classmethod
    def from_pil(cls, image: PilImage) -> Image:
        """A PIL image; sent as a lossless PNG."""
        return cls(
            f"PIL image {image.size}", lambda: _encoded(_pil_png(image)), lambda: _kept(image)
        )

    @classmethod
    def resized(
        cls, image: ImageLike, to: ImagePreprocessing, *, max_pixels: int = MAX_PIXELS
    ) -> Image:
        """The same image, decoded and resized here to the model's input when it is read.

        Sends at most to.nbytes instead of the whole image, within one level of what the
        server would make of it. An image that is smaller as it is, has more than
        `max_pixels`, or can't be read is sent as it is. Needs the extra `image` (Pillow).

        Args:
            image: As an item of encode.
            to: Of the version that will encode it: VersionInfo.image_preprocessing.
            max_pixels: Most pixels to decode.

        Raises:
            FailedPrecondition: Pillow is missing; reason PILLOW_MISSING.
        """
        require_pillow()
        whole = image_of(image, "image")

        def load() -> types_pb2.EncodeItem:
            if whole.picture is None:
                return smaller(whole.load(), to, max_pixels)
            return smaller_picture(whole.picture, whole.load, to, max_pixels)

        return cls(f"{whole.origin}, resized", load)


ImageLike: TypeAlias = "bytes | Path | NDArray[np.uint8] | Image | PilImage"
Item: TypeAlias = "str | Text | ImageLike"


def item_of(
    value: object, field: str, resize: ImagePreprocessing | None = None
) -> types_pb2.EncodeItem:
    """The message for one input; reads, fetches or packs an image, and resizes it if told how.

    Raises:
        InvalidArgument: Wrong type (reason ITEM_TYPE), empty text, or an image that
            could not be read (reason IMAGE_UNREADABLE).
    """
    if isinstance(value, Text):
        value = value.text
    if isinstance(value, str):
        if not value:
            raise InvalidArgument.field(field, "empty text", reason="TEXT_EMPTY")
        try:
            return types_pb2.EncodeItem(text=value)
        except (ValueError, UnicodeEncodeError) as error:  # a lone surrogate
            raise InvalidArgument.field(
                field, "not valid Unicode", reason="TEXT_INVALID"
            ) from error
    image = image_of(value, field)
    return (image if resize is None else Image.resized(image, resize)).load()


def image_of(value: object, field: str) -> Image:
    """Wraps an image in any of its forms; reads nothing.

    Raises:
        InvalidArgument: No form of an image (reason ITEM_TYPE).
    """
    match value:
        case Image():
            return value
        case bytes() | bytearray() | memoryview():
            return Image.from_bytes(value)
        case Path():
            return Image.from_path(value)
        case np.ndarray():
            return Image.from_array(value)
    pil = sys.modules.get("PIL.Image")  # never imported here: who has a PIL image has PIL
    if pil is not None and isinstance(value, pil.Image):
        return Image.from_pil(value)
    raise InvalidArgument.field(
        field,
        f"{type(value).__name__} is no str, bytes, pathlib.Path, uint8 array, PIL image,"
        " Text or Image",
        reason="ITEM_TYPE",
    )


def is_single(value: object) -> bool:
    """Whether a value is one input rather than a list of inputs."""
    if isinstance(value, str | bytes | bytearray | memoryview | Path | Text | Image):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim == 3
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def may_block(values: Iterable[object], *, resize: bool = False) -> bool:
    """Whether packing any of these may read files, fetch, compress or resize."""
    quick = str | Text if resize else str | bytes | Text
    return not all(isinstance(value, quick) for value in values)


def png(rgb: NDArray[np.uint8]) -> bytes:
    """Packs (height, width, 3) uint8 RGB losslessly (PNG, RFC 2083, filter 0)."""
    height, width, _ = rgb.shape
    rows = np.zeros((height, 1 + width * 3), dtype=np.uint8)
    rows[:, 1:] = rgb.reshape(height, width * 3)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def encoded_of(item: types_pb2.EncodeItem) -> bytes:
    """An image as an encoded file, also if it was given as pixels."""
    if item.WhichOneof("content") == "tensor":
        pixels = np.frombuffer(item.tensor.data, dtype=np.uint8)
        return png(pixels.reshape(item.tensor.height, item.tensor.width, 3))
    return item.image


def _encoded(data: bytes) -> types_pb2.EncodeItem:
    if not data:
        raise InvalidArgument.field("image", "empty", reason="IMAGE_UNREADABLE")
    return types_pb2.EncodeItem(image=data)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument.field(
            "image", f"{path}: {error.strerror or error}", reason="IMAGE_UNREADABLE"
        ) from error


def _rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InvalidArgument.field(
            "image",
            f"array of {pixels.dtype} {pixels.shape} is not uint8 (height, width, 3)",
            reason="ITEM_TYPE",
        )
    return np.ascontiguousarray(pixels)


def _picture(rgb: NDArray[np.uint8]) -> PilImage:
    from PIL import Image as Pil

    return Pil.fromarray(rgb)


def _kept(image: PilImage) -> PilImage:
    return image if image.mode in _PNG_MODES else image.convert("RGB")


def _pil_png(image: PilImage) -> bytes:
    out = io.BytesIO()
    try:
        _kept(image).save(out, "PNG", compress_level=1)
    except UNREADABLE as error:
        raise InvalidArgument.field("image", str(error), reason="IMAGE_UNREADABLE") from error
    return out.getvalue()
