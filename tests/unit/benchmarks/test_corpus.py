"""What is sent: enough of it, all different, the same every time, and like photographs."""

import io
from pathlib import Path

import numpy as np
import open_clip
from PIL import Image

from benchmarks.captions import Writer
from benchmarks.corpus import SIZES, encode_request, read_items, write_corpus

COUNTS = {"jpeg_small": 6, "jpeg_large": 3, "tensor": 4, "text": 30, "text_long": 30}


def test_items_are_different_and_the_same_every_time(tmp_path: Path) -> None:
    sizes = write_corpus(tmp_path / "one", COUNTS, 64)
    write_corpus(tmp_path / "two", COUNTS, 64)
    for content, count in COUNTS.items():
        items = read_items(tmp_path / "one", content)
        packed = {encode_request([item]).SerializeToString() for item in items}
        assert len(packed) == count
        again = read_items(tmp_path / "two", content)
        assert encode_request(items) == encode_request(again)
        assert sizes[content] > 0


def test_pictures_have_the_size_and_the_texture_of_photographs(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"jpeg_small": 6, "jpeg_large": 3, "tensor": 4}, 64)
    for content, size in SIZES.items():
        for data in read_items(tmp_path, content):
            assert isinstance(data, bytes)
            image = Image.open(io.BytesIO(data))
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", size)
            # Photographs of this quality take one to four bits a pixel; flat drawings a tenth.
            assert 0.8 < 8 * len(data) / (size[0] * size[1]) < 5
            assert np.asarray(image).std() > 15
    for pixels in read_items(tmp_path, "tensor"):
        assert isinstance(pixels, np.ndarray)
        assert pixels.shape == (64, 64, 3)
        assert pixels.dtype == np.uint8


def test_captions_are_short_and_long() -> None:
    writer = Writer(seed=3)
    short = [writer.short() for _ in range(200)]
    assert {len(caption.split()) for caption in short} == set(range(8, 15))
    long = [writer.long() for _ in range(50)]
    tokens = open_clip.get_tokenizer("ViT-B-32")(long)
    assert ((tokens != 0).sum(dim=1) >= 60).all()
    assert len({*short, *long}) == 250
