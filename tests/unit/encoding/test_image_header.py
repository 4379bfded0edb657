"""The size of an image is known before Pillow sees it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.pictures import encoded, every_mode

from hotclip_server.encoding.image_header import DamagedHeader, UnknownFormat, read_header

SIDE = st.integers(1, 600)


@given(width=SIDE, height=SIDE, kind=st.sampled_from(["JPEG", "PNG", "WEBP"]), fine=st.booleans())
def test_size_is_pillows(width: int, height: int, kind: str, fine: bool) -> None:
    options = {"lossless": fine} if kind == "WEBP" else {}
    header = read_header(encoded(Image.new("RGB", (width, height)), kind, **options))
    assert (header.format, header.width, header.height) == (kind, width, height)


@pytest.mark.parametrize("data", every_mode().values(), ids=every_mode().keys())
def test_every_kind_of_file(data: bytes) -> None:
    header = read_header(data)
    assert (header.width, header.height) == (320, 240)


@given(
    data=st.sampled_from(list(every_mode().values())),
    length=st.integers(0, 200),
    at=st.integers(0, 100),
    value=st.integers(0, 255),
)
def test_damage_is_named_or_harmless(data: bytes, length: int, at: int, value: int) -> None:
    damaged = bytearray(data[:length])
    if at < len(damaged):
        damaged[at] = value
    try:
        header = read_header(bytes(damaged))
    except (UnknownFormat, DamagedHeader):
        return
    assert header.width > 0
    assert header.height > 0


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(20), b"BM" + bytes(50), b"%PDF-1.7"])
def test_other_formats(data: bytes) -> None:
    with pytest.raises(UnknownFormat):
        read_header(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\x00\x04ab\xff\xda\x00\x02",
        b"\xff\xd8" + b"\xff" * 500,
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIDAT",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(8),
        b"RIFF\x00\x00\x00\x00WEBP",
        b"RIFF\x00\x00\x00\x00WEBPVP8X" + bytes(12),
        b"RIFF\x00\x00\x00\x00WEBPICCP" + bytes(20),
    ],
)
def test_headers_without_a_size(data: bytes) -> None:
    with pytest.raises(DamagedHeader):
        read_header(data)
