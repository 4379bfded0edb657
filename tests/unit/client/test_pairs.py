"""Pairs from lists and files, what an upload sends, and what a download writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotclip import Image, Pair
from hotclip._datasets import DatasetWriter, Upload, content_name
from hotclip._pairs import pairs_of
from hotclip._server import Limits
from hotclip.errors import DataLoss, FieldViolation, InvalidArgument
from hotclip_proto.v1 import dataset_pb2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c, d.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", 'text,image\nein Fuchs,a.png\n"zwei, drei","c, d.png"\n'),
        ("p.csv", '\ufeffImage,Caption\na.png,ein Fuchs\n"c, d.png","zwei, drei"\n'),
        ("p.csv", 'ein Fuchs,a.png\n\n"zwei, drei","c, d.png"\n'),
        ("p.csv", 'a.png,ein Fuchs\n"c, d.png","zwei, drei"\n'),
        ("p.tsv", "text\timage\nein Fuchs\ta.png\nzwei, drei\tc, d.png\n"),
        (
            "p.jsonl",
            '{"text": "ein Fuchs", "image": "a.png"}\n\n'
            '{"image": "c, d.png", "text": "zwei, drei"}',
        ),
    ],
)
def test_files_in_many_shapes(folder: Path, name: str, text: str) -> None:
    pairs = pairs_of(write(folder, name, text))
    assert [p.text for p in pairs] == ["ein Fuchs", "zwei, drei"]
    assert [p.image.load().image for p in pairs] == [b"a.png", b"c, d.png"]


def test_groups(folder: Path) -> None:
    pairs = pairs_of(write(folder, "p.csv", "text,image,group\nx,a.png,g\ny,b.png,\n"))
    assert [p.group for p in pairs] == ["g", ""]
    rows = '{"text": "x", "image": "a.png", "group": null}\n{"text": "y", "image": "b.png"}'
    assert [p.group for p in pairs_of(write(folder, "p.jsonl", rows))] == ["", ""]


def test_a_text_may_be_longer_than_a_name_of_a_file(folder: Path) -> None:
    [pair] = pairs_of(write(folder, "p.csv", f"{'x' * 300},a.png\n"))
    assert pair.text == "x" * 300
    with pytest.raises(InvalidArgument, match="line 2: no such image"):
        pairs_of(write(folder, "p.csv", f"text,image\nx,{'x' * 300}\n"))


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("p.csv", "text,image\nx,none.png\n,a.png\ny,b.png\nz\n", ["line 2", "line 3", "line 5"]),
        ("p.csv", "image,text\na.png,one, two\nb.png,three\n", ["line 2"]),
        ("p.csv", "a.png,one\nb.png,two, three\n", ["line 2"]),
        ("p.csv", "x,y\n", ["line 1"]),
        ("p.csv", "a.png,b.png\n", ["line 1"]),
        ("p.csv", "text,image\n", ["line 1"]),
        ("p.jsonl", '{"text": "x"}\nnonsense\n[]\n', ["line 1", "line 2", "line 3"]),
    ],
)
def test_bad_rows_are_named_by_line(folder: Path, name: str, text: str, lines: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        pairs_of(write(folder, name, text))
    assert [v.field for v in caught.value.fields][: len(lines)] == lines


@given(st.lists(st.tuples(st.sampled_from("xyz "), st.binary(max_size=3)), max_size=6))
def test_lists_of_pairs_in_either_order(pairs: list[tuple[str, bytes]]) -> None:
    if not pairs or any(not text.strip() for text, _ in pairs):
        with pytest.raises(InvalidArgument):
            pairs_of(pairs)
        return
    assert [p.text for p in pairs_of(pairs)] == [p.text for p in pairs_of([p[::-1] for p in pairs])]


@pytest.mark.parametrize("bad", [("a", "b.png"), (b"1", b"2"), "ab", ("a", 3), (1, 2, 3)])
def test_bad_pairs_are_named_by_position(bad: object) -> None:
    with pytest.raises(InvalidArgument, match=r"pairs\[1"):
        pairs_of([("a", b"1"), bad])
    with pytest.raises(InvalidArgument) as caught:
        pairs_of([bad])
    assert "empty" not in str(caught.value)


def test_an_upload_sends_each_image_once_and_its_name_is_its_content() -> None:
    pairs = [("a", b"1"), ("b", b"2"), Pair("c", b"1", "g")]
    messages = list(Upload("n", "d", pairs_of(pairs), Limits()).requests())
    assert [m.WhichOneof("part") for m in messages] == ["open", "image", "image", "pairs", "close"]
    assert [p.text for p in messages[-2].pairs.pairs] == ["a", "b", "c"]
    assert messages[-1].close == dataset_pb2.DatasetClose(pairs=3, images=2)
    name = content_name(pairs_of(pairs))
    assert name == content_name(pairs_of(pairs[::-1]))
    assert name != content_name(pairs_of(pairs[:2]))


def test_what_the_server_refuses_is_named_by_line(folder: Path) -> None:
    rows = "text,image\nx,a.png\ny,a.png\nz,b.png\n"
    upload = Upload("n", "", pairs_of(write(folder, "p.csv", rows)), Limits())
    assert len(list(upload.requests())) == 5
    told = ("images[1].data", "pairs[1].text", "pairs[9].text", "name")
    found = upload.located(InvalidArgument("bad", fields=[FieldViolation(f, "odd") for f in told]))
    assert [v.field for v in found.fields] == ["line 4.image", "line 3.text", *told[2:]]
    assert "line 4.image: odd; line 3.text: odd" in str(found)


def test_an_image_that_no_message_can_hold_is_named(folder: Path) -> None:
    pairs = pairs_of(write(folder, "p.csv", 'text,image\nx,a.png\ny,"c, d.png"\n'))
    limits = Limits(max_message_bytes=(64 << 10) + 6)
    with pytest.raises(InvalidArgument, match="IMAGE_TOO_LARGE: line 3: image of 8 bytes"):
        list(Upload("n", "", pairs, limits).requests())


def test_pixels_are_uploaded_as_a_file() -> None:
    pixels = Image.from_pixels(np.zeros((2, 2, 3), np.uint8))
    image = next(
        m for m in Upload("", "", pairs_of([("a", pixels)]), Limits()).requests() if m.image.data
    )
    assert image.image.data.startswith(b"\x89PNG")


def test_a_download_can_be_uploaded_again(tmp_path: Path) -> None:
    sent = list(Upload("n", "", pairs_of([("ä", b"1"), Pair("b", b"2", "g")]), Limits()).requests())
    writer = DatasetWriter(tmp_path / "new")
    for message in sent[:-1]:  # close: a download ends with its status
        part = {message.WhichOneof("part"): getattr(message, message.WhichOneof("part"))}
        writer.accept(dataset_pb2.DownloadDatasetResponse(**part))
    writer.close()
    again = pairs_of(writer.finish())
    assert [(p.text, p.image.load().image, p.group) for p in again] == [
        ("ä", b"1", ""),
        ("b", b"2", "g"),
    ]
    with pytest.raises(InvalidArgument):
        DatasetWriter(tmp_path / "new")


def test_a_download_that_brings_nothing_leaves_nothing(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "new")
    writer.close()
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataLoss):
        writer.finish()


def test_a_damaged_download_is_refused(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "new")
    image = dataset_pb2.DatasetImage(key="../../etc/passwd", data=b"1")
    with pytest.raises(DataLoss):
        writer.accept(dataset_pb2.DownloadDatasetResponse(image=image))
    lonely = dataset_pb2.DatasetPairs(pairs=[dataset_pb2.DatasetPair(image_key="k", text="t")])
    writer.accept(dataset_pb2.DownloadDatasetResponse(pairs=lonely))
    writer.close()
    with pytest.raises(DataLoss):
        writer.finish()
