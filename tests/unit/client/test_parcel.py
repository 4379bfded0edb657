"""A folder is sent as the archive that it would be."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from hotclip._parcel import Parcel
from hotclip.errors import InvalidArgument

FILES = {
    "open_clip_config.json": b"{}",
    "open_clip_model.safetensors": b"w" * 1500,
    "tokenizer.json": b"t" * 512,
    "empty.txt": b"",
}


def model(folder: Path, **more: bytes) -> Path:
    folder.mkdir()
    for name, content in {**FILES, **more}.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_is_an_archive_of_what_a_model_has(tmp_path: Path) -> None:
    extra = {"README.md": b"x", "open_clip_pytorch_model.bin": b"x", ".cache.json": b"x"}
    parcel = Parcel(model(tmp_path / "m", **extra, **{"model.safetensors": b"other"}))
    whole = parcel.read(0, parcel.size + 10)
    assert len(whole) == parcel.size
    (tmp_path / "m.tar").write_bytes(whole)
    with tarfile.open(tmp_path / "m.tar") as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]  # all are files
    assert files == {f"model/{name}": content for name, content in FILES.items()}
    for offset in (0, 1, 511, 512, 513, 1800, parcel.size - 1):
        assert parcel.read(offset, 700) == whole[offset : offset + 700]
    assert parcel.sha256() == hashlib.sha256(whole).hexdigest()
    same = Parcel(tmp_path / "m.tar")
    assert (same.size, same.sha256()) == (parcel.size, parcel.sha256())


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_what_is_no_model_is_refused(tmp_path: Path, missing: str) -> None:
    folder = model(tmp_path / "m")
    (folder / missing).unlink()
    for path in (folder, folder / "tokenizer.json", tmp_path / "nothing"):
        with pytest.raises(InvalidArgument):
            Parcel(path)


def test_a_file_that_shrinks_is_told(tmp_path: Path) -> None:
    parcel = Parcel(model(tmp_path / "m"))
    (tmp_path / "m" / "tokenizer.json").write_bytes(b"t")
    with pytest.raises(InvalidArgument, match="shorter"):
        parcel.read(0, parcel.size)
