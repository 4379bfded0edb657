"""Pixels are open_clip's own, and nothing too large is decoded."""

import io
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from support.pictures import encoded, every_mode, photograph

from hotclip_server.encoding.image import ImageLimits, ImagePreparer
from hotclip_server.errors import InvalidArgument

CONFIGS = {
    "clip": PreprocessCfg(size=224),
    "clip-pair": PreprocessCfg(size=(64, 64)),
    "siglip": PreprocessCfg(size=(224, 224), resize_mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3),
    "longest": PreprocessCfg(size=96, resize_mode="longest", fill_color=7),
    "bilinear": PreprocessCfg(size=224, interpolation="bilinear"),
}
MODES = every_mode()


def preparer(config: PreprocessCfg = CONFIGS["clip"], **limits: int) -> ImagePreparer:
    return ImagePreparer(asdict(config), ImageLimits(**limits))


def reason_of(data: bytes, **limits: int) -> str:
    with pytest.raises(InvalidArgument) as caught:
        preparer(**limits).prepare(data)
    assert caught.value.violations[0].field == "image"
    return caught.value.reason


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # open_clip's
def test_pixels_are_those_of_open_clip(name: str, kind: str) -> None:
    config = CONFIGS[kind]
    with Image.open(io.BytesIO(MODES[name])) as image:
        expected = image_transform_v2(config, is_train=False)(image)
    pixels = preparer(config).prepare(MODES[name])
    assert pixels.dtype == np.uint8
    mean, std = np.array(config.mean), np.array(config.std)
    levels = 255 * (expected.permute(1, 2, 0).numpy() * std + mean)
    np.testing.assert_allclose(pixels, levels, rtol=0, atol=1.001)


def test_palette_with_alpha_gives_no_warning() -> None:
    preparer().prepare(MODES["png-palette-alpha"])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (300, 2), (224, 224), (223, 225)])
def test_odd_sizes(width: int, height: int) -> None:
    data = encoded(photograph(5, width, height))
    assert preparer().prepare(data).shape == (224, 224, 3)


@pytest.mark.parametrize("data", [b"", b"hello", encoded(photograph(1), "GIF")])
def test_other_formats(data: bytes) -> None:
    assert reason_of(data) == "IMAGE_FORMAT"


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_truncated(name: str, part: float) -> None:
    data = MODES[name]
    if name == "png-animated" and part >= 0.5:
        assert preparer().prepare(data[: int(len(data) * part)]).any()  # its first frame is whole
        return
    assert reason_of(data[: int(len(data) * part)]) == "IMAGE_UNREADABLE"


@settings(max_examples=200, deadline=None)
@given(
    data=st.sampled_from(
        [encoded(photograph(1, 40, 30), kind) for kind in ("JPEG", "PNG", "WEBP")]
    ),
    damage=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_is_an_invalid_argument_or_harmless(
    data: bytes, damage: list[tuple[int, int]]
) -> None:
    damaged = bytearray(data)
    for at, value in damage:
        damaged[at % len(damaged)] = value
    try:
        pixels = preparer().prepare(bytes(damaged))
    except InvalidArgument:
        return
    assert pixels.shape == (224, 224, 3)


def test_limits_are_inclusive() -> None:
    data = encoded(photograph(1, 300, 300))
    preparer(max_bytes=len(data), max_pixels=90_000).prepare(data)
    assert reason_of(data, max_bytes=len(data) - 1) == "IMAGE_TOO_LARGE"
    assert reason_of(data, max_pixels=89_999) == "IMAGE_TOO_LARGE"


def test_tensor() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    assert np.array_equal(preparer().from_tensor(pixels.tobytes(), 224, 224), pixels)


@pytest.mark.parametrize(("size", "height", "width"), [(150_528, 224, 223), (150_527, 224, 224)])
def test_tensor_of_another_size(size: int, height: int, width: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        preparer().from_tensor(bytes(size), height, width)
    assert caught.value.reason == "TENSOR_SHAPE"
