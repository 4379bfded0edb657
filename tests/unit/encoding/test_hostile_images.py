"""Small files that would need much memory or time are refused before they are decoded."""

import hashlib
import random
import struct
import zlib
from dataclasses import asdict

import pytest
import simplejpeg
from open_clip.transform import PreprocessCfg
from PIL import Image
from support.pictures import encoded, photograph

from hotclip_server.datasets.records import DatasetLimits
from hotclip_server.datasets.rows import image_facts
from hotclip_server.encoding.image import ImageLimits, ImagePreparer
from hotclip_server.errors import InvalidArgument

SCAN = b"\xff\xda"
CONTRAST = b"\xff\xda\x00\x08\x01\x01\x00\x01\x05\x00"
"""Header of a progressive scan of the first component; its data may be missing."""


def preparer(size: int = 16, **limits: int) -> ImagePreparer:
    return ImagePreparer(asdict(PreprocessCfg(size=size)), ImageLimits(**limits))


def reason_of(data: bytes, **limits: int) -> str:
    with pytest.raises(InvalidArgument) as caught:
        preparer(**limits).prepare(data)
    assert caught.value.violations[0].field == "image"
    return caught.value.reason


def problem_for_datasets(data: bytes) -> str:
    key = hashlib.sha256(data).hexdigest()
    return image_facts(key, data, DatasetLimits()).problem


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*sizes: tuple[int, int]) -> bytes:
    """Grey, with a header for each size (width, height); its pixels are of the last."""
    headers = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        for width, height in sizes
    ]
    width, height = sizes[-1]
    pixels = zlib.compress(bytes((width + 1) * height) if width * height < 1 << 20 else b"")
    end = chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(headers) + end


def segment_end(jpeg: bytes) -> int:
    """Where the first segment after the start of the image ends."""
    return int(4 + struct.unpack_from(">H", jpeg, 4)[0])


def inserted(jpeg: bytes, more: bytes) -> bytes:
    at = segment_end(jpeg)
    return jpeg[:at] + more + jpeg[at:]


@pytest.fixture(scope="module")
def progressive() -> bytes:
    return encoded(photograph(1, 64, 48), "JPEG", progressive=True)


@pytest.mark.parametrize(("width", "height"), [(50_001, 1_000), (100_000, 100_000), (2**31 - 1, 1)])
def test_bombs_are_refused_from_the_header(width: int, height: int) -> None:
    assert reason_of(png((width, height))) == "IMAGE_TOO_LARGE"


def test_a_strip_that_resizing_blows_up() -> None:
    strip = encoded(Image.new("L", (1, 60_000)))
    with pytest.raises(InvalidArgument) as caught:
        preparer(size=224).prepare(strip)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_webp_canvas_is_refused_before_it_is_allocated() -> None:
    canvas = (16_383 - 1).to_bytes(3, "little")
    data = b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas + canvas + bytes(40)
    assert reason_of(data) == "IMAGE_TOO_LARGE"


def test_the_size_that_counts_is_the_one_that_is_decoded() -> None:
    assert preparer().prepare(png((8, 8), (9, 9))).shape == (16, 16, 3)
    assert reason_of(png((8, 8), (1, 8_000)), max_pixels=100_000) == "IMAGE_TOO_LARGE"
    assert reason_of(png((8, 8), (8_000, 8_000))) == "IMAGE_TOO_LARGE"
    assert reason_of(png((8, 8), (0, 9))) == "IMAGE_UNREADABLE"


def test_datasets_count_the_size_that_is_decoded() -> None:
    assert problem_for_datasets(png((8, 8), (9, 9))) == ""
    assert "8000 x 8000 pixels" in problem_for_datasets(png((8, 8), (8_000, 8_000)))


def test_a_jpeg_of_two_frames_counts_with_its_last() -> None:
    jpeg = encoded(photograph(1, 64, 48), "JPEG")
    small = b"\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00"
    large = b"\xff\xc0\x00\x0b\x08\x20\x00\x20\x00\x01\x01\x11\x00"
    assert reason_of(inserted(jpeg, small)) == "IMAGE_UNREADABLE"
    first, scan = jpeg.index(b"\xff\xc0"), jpeg.index(SCAN)
    assert first < scan
    assert reason_of(jpeg[:scan] + large + jpeg[scan:]) == "IMAGE_TOO_LARGE"
    assert "8192 x 8192 pixels" in problem_for_datasets(jpeg[:scan] + large + jpeg[scan:])


def test_a_webp_frame_larger_than_its_canvas() -> None:
    frame = encoded(photograph(1, 200, 100), "WEBP")[12:]
    for canvas in (b"\x07\0\0\x07\0\0", b"\xc8\0\0\x63\0\0"):
        body = b"WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas + frame
        data = b"RIFF" + struct.pack("<I", len(body)) + body
        assert reason_of(data) == "IMAGE_UNREADABLE"


def test_scans_are_limited(progressive: bytes) -> None:
    body, end = progressive[:-2], progressive[-2:]
    own = body.count(SCAN)
    assert 5 < own < 20
    most = body + CONTRAST * (100 - own) + end
    simplejpeg.decode_jpeg(most, strict=False)  # libjpeg does run them
    assert preparer().prepare(progressive).any()
    assert problem_for_datasets(progressive) == ""
    assert reason_of(body + CONTRAST * (101 - own) + end) == "IMAGE_UNREADABLE"
    assert "scans" in problem_for_datasets(body + CONTRAST * (101 - own) + end)


def test_scans_after_something_that_looks_like_an_end(progressive: bytes) -> None:
    comment = b"\xff\xfe\x00\x04\xff\xd9"
    data = progressive[:-2] + comment + CONTRAST * 101 + progressive[-2:]
    assert "scans" in problem_for_datasets(data)


def test_what_only_looks_like_scans_is_none(progressive: bytes) -> None:
    video = random.Random(0).randbytes(1 << 20) + SCAN * 200
    thumbnail = b"\xff\xe1\x02\x02" + SCAN * 256
    for data in (progressive + video, inserted(progressive, thumbnail)):
        assert preparer().prepare(data).any()
        assert problem_for_datasets(data) == ""


@pytest.mark.parametrize(
    "padding",
    [bytes(1 << 20), b"\xff\x00" * (1 << 19), b"\xff" * (1 << 20), b"\xff\xfe\x00\x02" * 2_000],
    ids=["zeros", "escapes", "fill", "comments"],
)
def test_padding_that_takes_long_to_skip(padding: bytes) -> None:
    jpeg = encoded(photograph(1, 64, 48), "JPEG")
    preparer().prepare(inserted(jpeg, padding[:400]))
    assert reason_of(inserted(jpeg, padding)) == "IMAGE_UNREADABLE"
    assert "before its data" in problem_for_datasets(inserted(jpeg, padding))
    before_data = jpeg.index(SCAN)
    late = jpeg[:before_data] + padding + jpeg[before_data:]
    assert reason_of(late) == "IMAGE_UNREADABLE"
