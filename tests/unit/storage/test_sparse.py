"""Copies have the same bytes, and holes where there were holes."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from hotclip_server.storage.sparse import copy_folder, used_bytes

MIB = 1 << 20


def fill(folder: Path) -> dict[str, bytes]:
    """Files with holes in every place; what they hold."""
    noise = random.Random(0).randbytes(3 * MIB + 17)
    parts = {
        "empty": (0, []),
        "plain": (len(noise), [0]),
        "hole": (8 * MIB, []),
        "end": (9 * MIB, [0]),
        "begin": (5 * MIB + len(noise), [5 * MIB]),
        "deep/er/both": (32 * MIB, [4096, 8 * MIB, 20 * MIB]),
    }
    for name, (size, places) in parts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for place in places:
                file.seek(place)
                file.write(noise)
            file.truncate(size)
    (folder / "none").mkdir()
    return {name: (folder / name).read_bytes() for name in parts}


@pytest.fixture(params=["none", "ranges", "ranges unsaid", "holes", "both"])
def lacking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the system cannot do."""

    def fails(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    lseek = os.lseek

    def no_holes(file: int, at: int, how: int) -> int:
        if how == os.SEEK_DATA:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return lseek(file, at, how)

    lacks: str = request.param
    if lacks in ("ranges", "both"):
        monkeypatch.setattr(os, "copy_file_range", fails, raising=False)
    if lacks == "ranges unsaid":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0, raising=False)
    if lacks in ("holes", "both"):
        monkeypatch.setattr(os, "lseek", no_holes)
    return lacks


def test_a_copy_is_the_same_and_as_small(tmp_path: Path, lacking: str) -> None:
    there, copy = tmp_path / "there", tmp_path / "copy"
    expected = fill(there)
    copy_folder(there, copy)
    assert (copy / "none").is_dir()
    assert {name: (copy / name).read_bytes() for name in expected} == expected
    data = sum(map(len, expected.values()))
    if used_bytes(there) < data // 2 and lacking not in ("holes", "both"):
        assert used_bytes(copy) <= 1.1 * used_bytes(there)
    with pytest.raises(FileExistsError):
        copy_folder(there, copy)
