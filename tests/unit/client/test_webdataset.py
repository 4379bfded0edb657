"""Tars: samples as CLIP's tools write them, and what hostile or damaged ones do."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotclip import BadRow
from hotclip._dataset_file import rows_of
from hotclip._pairs import ImagePair, Tolerance, check
from hotclip.errors import InvalidArgument

PNG = b"\x89PNG\r\n\x1a\n"


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type, found.linkname = size, kind, "/etc/passwd"
    return found


def tar_of(
    files: Iterable[tuple[str | tarfile.TarInfo, bytes]],
    mode: str = "w",
    form: int = tarfile.PAX_FORMAT,
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=form) as tar:  # type: ignore[call-overload]
        for name, data in files:
            entry = member(name, len(data)) if isinstance(name, str) else name
            tar.addfile(entry, io.BytesIO(data) if entry.isreg() else None)
    return out.getvalue()


def write(folder: Path, data: bytes, name: str = "shard.tar") -> Path:
    file = folder / name
    file.write_bytes(data)
    return file


def found(file: Path) -> list[tuple[str, str, str] | tuple[str, str]]:
    """(text, label, last byte of the image) of pairs; (where, field) of bad rows."""
    return [
        (row.where, row.field)
        if isinstance(row, BadRow)
        else (row.text, row.label, row.image.load().image[-1:].decode())
        for row in rows_of(file)
    ]


def test_samples(tmp_path: Path) -> None:
    files = [
        ("./a/000.jpg", PNG + b"0"),
        ("./a/000.txt", b"a fox\n"),
        ("a.b/001.png", PNG + b"1"),
        ("a.b/001.json", json.dumps({"caption": ["x", "y"], "label": 3, "url": "z"}).encode()),
        ("002.cls", b"7\n"),
        ("002.WEBP", PNG + b"2"),
        ("003.json", b'{"text": "from json", "group": "g"}'),
        ("003.txt", "from txt ä".encode()),
        ("003.jpeg", PNG + b"3"),
        ("003.npy", b"???"),
    ]
    pairs = [("a fox", "", "0"), ("x", "3", "1"), ("y", "3", "1"), ("", "7", "2")]
    pairs += [("from txt ä", "", "3")]
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.xz", "w:xz")):
        file = write(tmp_path, tar_of(files, mode), f"shard{suffix}")
        assert found(file) == pairs
    rows = rows_of(tmp_path / "shard.tar")
    assert check(rows, Tolerance()) == 5
    assert rows.notes == ["shard.tar: files that are not used: 1 × npy"]
    assert found(tmp_path) == pairs * 4  # a folder of shards


def test_bad_samples_are_named(tmp_path: Path) -> None:
    files: list[tuple[str | tarfile.TarInfo, bytes]] = [
        ("0.txt", b"no image"),
        ("1.png", PNG),
        ("2.png", PNG),
        ("2.json", b"{"),
        ("3.png", PNG),
        ("3.jpg", PNG),
        ("3.txt", b"two images"),
        ("4.png", PNG),
        ("4.txt", b"\xff"),
        (member("5.png", kind=tarfile.SYMTYPE), b""),
        ("5.txt", b"a link"),
        (member("6.png", kind=tarfile.LNKTYPE), b""),
        (member("7.png", kind=tarfile.CHRTYPE), b""),
        ("8.txt", b"x" * ((1 << 20) + 1)),
        ("9.png", PNG + b"9"),
        ("9.txt", b"good"),
        ("2.txt", b"late"),
        ("10.png", PNG),
        ("10.txt", b"one"),
        ("10.txt", b"two"),
    ]
    assert found(write(tmp_path, tar_of(files))) == [
        ("shard.tar: sample 0", "image"),
        ("shard.tar: sample 1", "text"),
        ("shard.tar: sample 2", "text"),
        ("shard.tar: sample 3", "image"),
        ("shard.tar: sample 4", "text"),
        *((f"shard.tar: sample {n}", "image") for n in (5, 6, 7)),
        ("shard.tar: sample 8", "text"),
        ("good", "", "9"),
        ("shard.tar: sample 2", "image"),
        ("shard.tar: sample 10", "text"),
    ]


def test_names_that_point_elsewhere_write_nothing(tmp_path: Path) -> None:
    files = [
        ("../../up.png", PNG + b"u"),
        ("../../up.txt", b"up"),
        ("/root.png", PNG),
        ("/root.txt", b"r"),
    ]
    before = sorted(path.name for path in tmp_path.parent.iterdir())
    assert len(found(write(tmp_path, tar_of(files)))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["shard.tar"]
    assert sorted(path.name for path in tmp_path.parent.iterdir()) == before
    bad = write(tmp_path, tar_of([("a\n\x1b[2J.png", PNG)]))
    [(where, _)] = found(bad)
    assert where.isprintable()


FILES = [
    (f"{i:03}.{s}", PNG * 200 if s == "png" else b"text") for i in range(4) for s in ("png", "txt")
]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_cut_tar_is_never_taken_for_a_whole_one(
    tmp_path_factory: pytest.TempPathFactory, form: int, share: float
) -> None:
    whole = tar_of(FILES, form=form)
    end = len(whole.rstrip(b"\0"))
    file = write(tmp_path_factory.getbasetemp(), whole[: int(end * share)], "cut.tar")
    with pytest.raises(InvalidArgument, match="damaged"):
        found(file)


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 6_000), st.integers(1, 255)), min_size=1, max_size=4)
)
def test_a_damaged_tar_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(tar_of(FILES))
    for place, change in changes:
        data[place] ^= change
    file = write(tmp_path_factory.getbasetemp(), bytes(data), "damaged.tar")
    try:
        rows = list(rows_of(file))
    except InvalidArgument:
        return
    assert len(rows) >= 4
    assert all(isinstance(row, BadRow | ImagePair) for row in rows)


def test_a_damaged_header_in_the_middle_is_found(tmp_path: Path) -> None:
    data = bytearray(tar_of(FILES))
    data[data.index(b"002.png")] ^= 1
    with pytest.raises(InvalidArgument, match=r"damaged at 001\.txt"):
        found(write(tmp_path, bytes(data)))


def test_tars_one_after_the_other_are_not_taken_for_the_first(tmp_path: Path) -> None:
    two = tar_of(FILES[:4]) + tar_of(FILES[4:])
    with pytest.raises(InvalidArgument, match="something follows its end"):
        found(write(tmp_path, two, "two.tar"))
    padded = write(tmp_path, tar_of(FILES[:4]) + bytes(1 << 17), "padded.tar")
    assert len(found(padded)) == 2


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_huge_header_is_refused_unread(tmp_path: Path, kind: bytes) -> None:
    header = member("x", 1 << 30, kind).tobuf(tarfile.GNU_FORMAT)
    file = tmp_path / "huge.tar"
    with file.open("wb") as out:
        out.write(header)
        os.truncate(out.fileno(), 1 << 30)  # sparse
    tracemalloc.start()
    with pytest.raises(InvalidArgument, match="a header of 1073741824 bytes"):
        found(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_member_that_is_too_large_is_passed_over(tmp_path: Path) -> None:
    big = member("0.png", 64 << 20)
    file = tmp_path / "big.tar"
    with file.open("wb") as out:
        out.write(big.tobuf(tarfile.GNU_FORMAT))
        out.seek(512 + big.size)
        out.write(tar_of([("1.png", PNG + b"1"), ("1.txt", b"good")]))
    tracemalloc.start()
    assert found(file) == [("big.tar: sample 0", "image"), ("good", "", "1")]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    files = [
        (f"{i}.{s}", PNG + data if s == "png" else b"t") for i in range(200) for s in ("png", "txt")
    ]
    file = write(tmp_path, tar_of(files))
    tracemalloc.start()
    assert check(rows_of(file), Tolerance()) == 200
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20 < file.stat().st_size


@pytest.mark.parametrize("data", [b"", b"no tar at all", bytes(512), bytes(10240)])
def test_what_is_no_tar(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        check(rows_of(write(tmp_path, data)), Tolerance())
