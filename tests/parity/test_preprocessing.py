"""Pixels are open_clip's own within one level, and nothing is taken or refused that it would not.

Hundreds of files in every mode, of odd sizes, through every way of resizing. Which of them went
past Pillow's decoder and resize is counted, so that the quick way is known to be tried.
"""

import io
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageFile
from support.pictures import encoded, photograph

from hotclip_server.encoding.image import ImageLimits, ImagePreparer
from hotclip_server.encoding.image_header import DamagedHeader, read_header
from hotclip_server.encoding.resize import Resizer
from hotclip_server.errors import InvalidArgument

IMAGES = 21
"""Files of each kind."""
LARGEST = 700
CONFIGS = [
    PreprocessCfg(size=224),
    PreprocessCfg(size=(64, 64), interpolation="bilinear"),
    PreprocessCfg(size=(64, 96)),
    PreprocessCfg(size=(224, 224), resize_mode="squash"),
    PreprocessCfg(size=(80, 112), resize_mode="squash", interpolation="bilinear"),
    PreprocessCfg(size=96, resize_mode="longest", fill_color=7),
    PreprocessCfg(size=(96, 64), resize_mode="longest", fill_color=200),
]
STRIP = PreprocessCfg(size=32)
"""For shapes that others would blow up to millions of pixels before the crop."""

Rng = np.random.Generator
Kind = Callable[[Image.Image, Rng], bytes]


def jpeg(image: Image.Image, rng: Rng, **options: object) -> bytes:
    options = {"quality": int(rng.integers(30, 96)), "subsampling": int(rng.integers(3))} | options
    return encoded(image, "JPEG", **options)


def with_alpha(image: Image.Image, rng: Rng) -> Image.Image:
    image = image.copy()
    image.putalpha(image.convert("L").rotate(180))
    return image


def cmyk(image: Image.Image, rng: Rng) -> bytes:
    """Adobe's YCCK, which Pillow cannot write."""
    return simplejpeg.encode_jpeg(np.asarray(image.convert("CMYK")).copy(), colorspace="CMYK")


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)


def palette(image: Image.Image) -> Image.Image:
    return image.quantize(32, method=Image.Quantize.FASTOCTREE)


EXIF = Image.Exif()
EXIF[0x0112] = 6

QUICKLY: dict[str, Kind] = {
    "jpeg": jpeg,
    "jpeg-progressive": lambda i, r: jpeg(i, r, progressive=True),
    "jpeg-restarts": lambda i, r: jpeg(i, r, restart_marker_blocks=int(r.integers(1, 9))),
    "jpeg-rgb": lambda i, r: jpeg(i, r, keep_rgb=True, subsampling=0),
    "jpeg-grey": lambda i, r: jpeg(i.convert("L"), r),
    "jpeg-rotated": lambda i, r: jpeg(i, r, exif=EXIF.tobytes()),
    "jpeg-mpo": lambda i, r: encoded(i, "MPO", save_all=True, append_images=[i.rotate(90)]),
    "png": lambda i, r: encoded(i, compress_level=1),
    "png-one-transparent": lambda i, r: encoded(i, compress_level=1, transparency=(1, 2, 3)),
    "png-grey": lambda i, r: encoded(i.convert("L"), compress_level=1),
    "webp": lambda i, r: encoded(i, "WEBP", method=0, quality=int(r.integers(30, 96))),
    "webp-lossless": lambda i, r: encoded(i, "WEBP", method=0, quality=0, lossless=True),
}
BY_PILLOW: dict[str, Kind] = {
    "jpeg-cmyk": lambda i, r: jpeg(i.convert("CMYK"), r),
    "jpeg-ycck": cmyk,
    "png-alpha": lambda i, r: encoded(with_alpha(i, r), compress_level=1),
    "png-grey-alpha": lambda i, r: encoded(with_alpha(i, r).convert("LA"), compress_level=1),
    "png-palette": lambda i, r: encoded(palette(i)),
    "png-palette-transparent": lambda i, r: encoded(palette(i), transparency=bytes(range(32))),
    "png-bits": lambda i, r: encoded(i.convert("1")),
    "png-16": lambda i, r: encoded(deep(i), compress_level=1),
    "webp-alpha": lambda i, r: encoded(with_alpha(i, r), "WEBP", method=0),
}
KINDS = QUICKLY | BY_PILLOW


class Calls:
    """How often Pillow decoded and resized."""

    def __init__(self) -> None:
        self.decoded = 0
        self.resized = 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen = Calls()
    load, resize = ImageFile.ImageFile.load, Image.Image.resize

    def counted_load(self: ImageFile.ImageFile) -> object:
        seen.decoded += bool(self.tile)
        return load(self)

    def counted_resize(self: Image.Image, *args: object, **options: object) -> Image.Image:
        seen.resized += 1
        return resize(self, *args, **options)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted_load)
    monkeypatch.setattr(Image.Image, "resize", counted_resize)
    return seen


@pytest.fixture(scope="module")
def texture() -> Image.Image:
    return photograph(1, LARGEST, LARGEST)


def cut(texture: Image.Image, rng: Rng, *, large: bool) -> Image.Image:
    """A part of odd size: half of them many times larger than they come out, some one pixel."""
    low = 300 if large else 1
    width, height = np.exp(rng.uniform(np.log(low), np.log(LARGEST), 2)).round().astype(int)
    left, top = rng.integers(0, LARGEST - width + 1), rng.integers(0, LARGEST - height + 1)
    return texture.crop((left, top, left + width, top + height))


def config_for(image: Image.Image, rng: Rng) -> PreprocessCfg:
    if max(image.size) > 20 * min(image.size):
        return STRIP
    return CONFIGS[rng.integers(len(CONFIGS))]


def preparer_of(config: PreprocessCfg) -> ImagePreparer:
    return ImagePreparer(asdict(config), ImageLimits())


def open_clips(config: PreprocessCfg, data: bytes) -> NDArray[np.float64] | None:
    """Levels (height, width, 3); None where it raises."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            pixels = image_transform_v2(config, is_train=False)(image)
    except (OSError, SyntaxError, ValueError):
        return None
    mean, std = np.array(config.mean), np.array(config.std)
    return 255 * (pixels.permute(1, 2, 0).numpy() * std + mean)


def ours(preparer: ImagePreparer, data: bytes) -> NDArray[np.uint8] | None:
    """None where it is refused."""
    try:
        return preparer.prepare(data)
    except InvalidArgument:
        return None


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # open_clip's
@pytest.mark.parametrize("kind", KINDS)
def test_pixels(kind: str, texture: Image.Image, calls: Calls) -> None:
    rng = np.random.default_rng([*kind.encode()])
    quick = 0
    for at in range(IMAGES):
        image = cut(texture, rng, large=at % 2 == 0)
        data, config = KINDS[kind](image, rng), config_for(image, rng)
        resizer = Resizer(image_transform_v2(config, is_train=False).transforms)
        preparer = preparer_of(config)
        calls.decoded = calls.resized = 0
        pixels = ours(preparer, data)
        if kind.startswith("jpeg") and kind in QUICKLY:
            assert calls.decoded == 0
        if kind in QUICKLY and resizer.is_sure_of(image.height, image.width):
            assert calls.resized == 0
            quick += 1
        expected = open_clips(config, data)
        if pixels is None or expected is None:
            assert pixels is expected, (image.size, config)
            continue
        assert pixels.shape == expected.shape
        assert np.abs(pixels - expected).max() < 1.001, (image.size, config)
    assert (quick > IMAGES // 3) == (kind in QUICKLY)


@pytest.mark.parametrize("kind", QUICKLY)
def test_what_is_cut_off_is_taken_or_refused_as_by_open_clip(
    kind: str, texture: Image.Image
) -> None:
    data = QUICKLY[kind](texture.crop((0, 0, 150, 120)), np.random.default_rng(0))
    config = PreprocessCfg(size=64)
    preparer = preparer_of(config)
    for end in (len(data) // 3, len(data) // 2, *range(len(data) - 24, len(data))):
        pixels, expected = ours(preparer, data[:end]), open_clips(config, data[:end])
        if pixels is None or expected is None:
            assert pixels is expected, (end, len(data))
        else:
            assert np.abs(pixels - expected).max() < 1.001
    assert ours(preparer, data + b"more") is not None


def size_of(data: bytes) -> tuple[int, int] | None:
    try:
        header = read_header(data)
    except DamagedHeader:
        return None
    return header.width, header.height


def test_damage_is_taken_or_refused_as_by_open_clip(texture: Image.Image) -> None:
    rng, config = np.random.default_rng(0), PreprocessCfg(size=32)
    data, preparer = jpeg(texture.crop((0, 0, 80, 60)), rng), preparer_of(config)
    answers = set()
    for _ in range(150):
        damaged = bytearray(data)
        for at in rng.integers(20, len(data), rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        if size_of(bytes(damaged)) != (80, 60):
            continue  # tests of limits and headers see to those
        pixels, expected = ours(preparer, bytes(damaged)), open_clips(config, bytes(damaged))
        answers.add(pixels is None)
        if pixels is None or expected is None:
            assert pixels is expected
        else:
            assert np.abs(pixels - expected).max() < 1.001
    assert answers == {False, True}
