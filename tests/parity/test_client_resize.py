"""Images that the client resizes against the server's own preparation of the same files."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pil
from support.pictures import encoded, every_mode, photograph

from hotclip import Image
from hotclip._resize import ImagePreprocessing, smaller
from hotclip_proto.v1 import types_pb2
from hotclip_server.encoding.image import ImageLimits, ImagePreparer

LEVELS = 1
"""How far the server's quick way may be off open_clip's transform, which is the client's."""

SIZES = [(640, 480), (481, 640), (300, 300), (1280, 853), (33, 900), (900, 47), (64, 64), (65, 64)]


def described(size: tuple[int, int], mode: str, how: str, fill: int) -> dict[str, object]:
    return {"size": size, "resize_mode": mode, "interpolation": how, "fill_color": fill}


def pair(
    size: tuple[int, int] = (64, 64), mode: str = "shortest", how: str = "bicubic", fill: int = 0
) -> tuple[ImagePreparer, ImagePreprocessing]:
    """The server's preparation and the client's of the same model."""
    server = ImagePreparer(described(size, mode, how, fill), ImageLimits())
    client = ImagePreprocessing(
        id="x", height=size[0], width=size[1], resize_mode=mode, interpolation=how, fill_color=fill
    )
    return server, client


def pixels(item: types_pb2.EncodeItem) -> NDArray[np.uint8]:
    tensor = item.tensor
    assert tensor.preprocessing_id == "x"
    return np.frombuffer(tensor.data, np.uint8).reshape(tensor.height, tensor.width, 3)


def assert_same(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= LEVELS


def compare(file: bytes, server: ImagePreparer, client: ImagePreprocessing) -> bool:
    """Whether the client resized it; if so it is what the server would have made."""
    item = smaller(types_pb2.EncodeItem(image=file), client)
    if item.WhichOneof("content") == "image":
        return False
    assert_same(pixels(item), server.prepare(file))
    return True


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (80, 48)])
def test_every_way_of_resizing(mode: str, how: str, size: tuple[int, int]) -> None:
    server, client = pair(size, mode, how, fill=7)
    resized = [
        compare(encoded(photograph(n, *shape), "JPEG", quality=95), server, client)
        for n, shape in enumerate(SIZES)
    ]
    assert sum(resized) >= 4


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_every_mode_of_image(mode: str) -> None:
    server, client = pair((32, 32), mode, fill=200)
    resized = {name for name, file in every_mode().items() if compare(file, server, client)}
    assert len(resized) >= 15, resized


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    size=st.tuples(st.integers(16, 90), st.integers(16, 90)),
)
def test_any_size(width: int, height: int, mode: str, size: tuple[int, int]) -> None:
    server, client = pair(size, mode)
    compare(encoded(photograph(1, width, height), "PNG"), server, client)


def test_pictures_that_are_not_encoded_yet() -> None:
    server, client = pair()
    for picture in (photograph(3), photograph(4).convert("L"), photograph(5).quantize(16)):
        item = Image.resized(picture, client).load()
        assert_same(pixels(item), server.prepare(encoded(picture)))
    array = np.asarray(photograph(6))
    assert_same(pixels(Image.resized(array, client).load()), server.prepare(encoded(photograph(6))))
    transparent = photograph(5).quantize(16)
    transparent.info["transparency"] = bytes(range(16))
    Image.resized(transparent, client).load()
    assert "transparency" in transparent.info  # the caller's image is not touched
    small = Image.resized(photograph(7, 20, 20), client).load()
    assert small.WhichOneof("content") == "image"


def test_what_cannot_be_resized_is_left_to_the_server(tmp_path: Path) -> None:
    _, client = pair()
    for file in (b"x" * 100_000, encoded(photograph(1), "JPEG")[:9000] + b"\0" * 9000, b"small"):
        item = types_pb2.EncodeItem(image=file)
        assert smaller(item, client) is item
    large = types_pb2.EncodeItem(image=encoded(photograph(1, 400, 400)))
    assert smaller(large, client, max_pixels=159_999) is large
    assert smaller(large, client, max_pixels=160_000) is not large
    strip = io.BytesIO()
    Pil.effect_noise((20_000, 2), 90).save(strip, "PNG")
    item = types_pb2.EncodeItem(image=strip.getvalue())
    assert smaller(item, client, max_pixels=1_000_000) is item  # 64 x 640,000 once resized
    tensor = types_pb2.EncodeItem(tensor=types_pb2.ImageTensor(data=bytes(30_000)))
    assert smaller(tensor, client) is tensor


def test_a_photograph_saves_most_of_its_bytes() -> None:
    _, client = pair((224, 224))
    file = encoded(photograph(1, 1280, 853), "JPEG", quality=90)
    sent = smaller(types_pb2.EncodeItem(image=file), client).ByteSize()
    assert sent < 151_000
    assert sent < 0.5 * len(file), asdict(client)
