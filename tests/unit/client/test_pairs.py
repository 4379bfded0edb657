"""Pairs from lists, what an upload sends of them, and what a download writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotclip import BadRow, Image, Pair
from hotclip._dataset_file import rows_of
from hotclip._datasets import DatasetWriter, content_name
from hotclip._pairs import ImagePair, Tolerance, check
from hotclip._parts import Part, Parts
from hotclip._server import Limits
from hotclip.errors import DataLoss, InvalidArgument
from hotclip_proto.v1 import dataset_pb2


def pairs_of(data: object) -> list[ImagePair]:
    rows = rows_of(data)
    check(rows, Tolerance())
    return [row for row in rows if isinstance(row, ImagePair)]


def parts_of(data: Iterable[object], limits: Limits | None = None) -> list[Part]:
    return list(Parts(rows_of(data), limits or Limits()))


@given(st.lists(st.tuples(st.sampled_from("xyz "), st.binary(max_size=3)), max_size=6))
def test_lists_of_pairs_in_either_order(pairs: list[tuple[str, bytes]]) -> None:
    if not pairs or any(not text.strip() for text, _ in pairs):
        with pytest.raises(InvalidArgument):
            pairs_of(pairs)
        return
    assert [p.text for p in pairs_of(pairs)] == [p.text for p in pairs_of([p[::-1] for p in pairs])]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (("a", "b.png"), ""),
        ((b"1", b"2"), ""),
        ("ab", ""),
        (("a", 3), "image"),
        ((1, 2, 3), ""),
        (Pair("", b"1"), "text"),
        (Pair(" ", b"1", label="x"), "text"),
        (Pair("\ud800", b"1"), "text"),
        (Pair("a", Path("/nowhere.png")), "image"),
        (Pair("a", b"1", score=1.01), "score"),
        (Pair("a", b"1", score=float("nan")), "score"),
        (Pair("a", b"1", negative_texts=["b", ""]), "negative_texts"),
        (Pair("a", b"1", negative_images=["b.png"]), "negative_images"),
    ],
)
def test_bad_pairs_are_named_by_position(bad: object, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        pairs_of([("a", b"1"), bad])
    where = f"pairs[1].{field}" if field else "pairs[1]"
    assert [v.field for v in caught.value.fields] == [where]
    with pytest.raises(InvalidArgument) as caught:
        pairs_of([bad])
    assert "no row at all" not in str(caught.value)
    rows = rows_of([("a", b"1"), bad])
    assert check(rows, Tolerance(max_bad_rows=1)) == check(rows, Tolerance(max_bad_share=0.5)) == 2
    with pytest.raises(InvalidArgument):
        check(rows, Tolerance(max_bad_share=0.49))


@pytest.mark.parametrize("told", [{"max_bad_rows": -1}, {"max_bad_share": 1.5}])
def test_a_tolerance_that_is_none(told: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(told))):
        Tolerance(**told)  # type: ignore[arg-type]  # a count or a share


def test_an_upload_sends_each_image_once_and_its_name_is_its_content() -> None:
    pairs = [("a", b"1"), ("b", b"2"), Pair("c", b"1", "g", negative_images=[b"2", b"3"])]
    messages = parts_of(pairs)
    assert [m.WhichOneof("part") for m in messages] == ["image", "image", "image", "pairs"]
    assert [p.text for p in messages[-1].pairs.pairs] == ["a", "b", "c"]
    assert list(messages[-1].pairs.pairs[2].negative_image_keys) == [
        messages[1].image.key,
        messages[2].image.key,
    ]
    assert [p.where for p in messages[-1].pairs.pairs] == ["pairs[0]", "pairs[1]", "pairs[2]"]
    name = content_name(rows_of(pairs))
    assert name == content_name(rows_of(pairs[::-1]))
    assert len({content_name(rows_of(some)) for some in (pairs, pairs[:2], pairs[1:])}) == 3


def test_a_file_is_read_once_however_many_rows_name_it(tmp_path: Path) -> None:
    reads = []
    file = tmp_path / "a.png"
    file.write_bytes(b"1")

    def load() -> object:
        reads.append(1)
        return Image.from_path(file).load()

    pairs = [("a", Image("a", load, source=str(file))) for _ in range(3)]  # type: ignore[arg-type]
    assert [m.WhichOneof("part") for m in parts_of(pairs)] == ["image", "pairs"]
    assert len(reads) == 1


def test_what_cannot_be_sent_is_told_in_its_place(tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    gone.write_bytes(b"1")
    rows = rows_of([("a", b"1"), ("b", gone), ("c", b"12345678"), ("d", b"2"), 7])
    found = list(rows)
    gone.unlink()
    messages = list(Parts(found, Limits(max_message_bytes=(64 << 10) + 6)))
    assert [m.WhichOneof("part") for m in messages] == [
        *("image", "pairs", "image", "rejected", "pairs", "rejected")
    ]
    told = [(row.where, row.field, row.reason) for m in messages for row in m.rejected.rows]
    assert told == [
        ("pairs[1]", "image", f"{gone}: No such file or directory"),
        ("pairs[2]", "image", "has 8 bytes, 6 are allowed"),
        ("pairs[4]", "", "neither a Pair nor a (text, image) tuple"),
    ]


def test_of_a_row_that_cannot_be_sent_no_image_is_given(tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    gone.write_bytes(b"1")
    rows = list(rows_of([Pair("a", b"5", negative_images=[b"6", gone]), ("b", b"5"), ("c", b"7")]))
    gone.unlink()
    messages = list(Parts(rows, Limits()))
    assert [m.WhichOneof("part") for m in messages] == ["image", "rejected", "image", "pairs"]
    named = {p.image_key for m in messages for p in m.pairs.pairs}
    assert {m.image.key for m in messages if m.HasField("image")} == named
    assert [m.image.data for m in messages if m.HasField("image")] == [b"5", b"7"]


def test_messages_of_rows_are_bounded() -> None:
    messages = parts_of([Pair("x" * 8000, b"1") for _ in range(1000)])
    assert len(messages) > 15
    assert all(m.ByteSize() < 2 << 20 for m in messages)


def test_pixels_are_uploaded_as_a_file() -> None:
    pixels = Image.from_pixels(np.zeros((2, 2, 3), np.uint8))
    image, pairs = parts_of([("a", pixels), ("b", pixels)])
    assert image.image.data.startswith(b"\x89PNG")
    assert len(pairs.pairs.pairs) == 2


def test_a_download_can_be_uploaded_again(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n"
    pairs = [
        ("ä", png + b"1"),
        Pair("b", png + b"2", "g", "l", 0.5, ["c"], [png + b"1", png + b"3"]),
        Pair("", png + b"3", label="l"),
    ]
    writer = DatasetWriter(tmp_path / "new")
    for message in parts_of(pairs)[::-1]:  # pairs before their images
        part = {message.WhichOneof("part"): getattr(message, message.WhichOneof("part"))}
        writer.accept(dataset_pb2.DownloadDatasetResponse(**part))
    writer.close()
    file = writer.finish()
    again = pairs_of(file)
    assert content_name(rows_of(file)) == content_name(rows_of(pairs))
    assert {p.image.load().image[-1:] for p in again} == {b"1", b"2", b"3"}
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


def test_bad_rows_read_well() -> None:
    assert str(BadRow("line 3", "image", "no such image: x")) == "line 3 (image): no such image: x"
