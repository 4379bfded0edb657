"""Archives: the same bytes for the same files, and nothing of a hostile one is unpacked."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotclip_server.artifacts.archive import read_entries, unpack, write_archive
from hotclip_server.errors import InvalidArgument


def files(folder: Path) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    contents = {"b.safetensors": b"x" * 1000, "a.json": b"{}", "empty.txt": b""}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def tar_of(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_the_same_files_make_the_same_bytes(tmp_path: Path) -> None:
    told: list[int] = []
    given_files = files(tmp_path / "in")
    first = write_archive(tmp_path / "1.tar", "model", given_files, told.append)
    again = dict(reversed(given_files.items()))
    assert write_archive(tmp_path / "2.tar", "model", again) == first
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert sum(told) == (tmp_path / "1.tar").stat().st_size
    with tarfile.open(tmp_path / "1.tar") as tar:  # any tar reads it
        assert tar.getnames() == ["model/a.json", "model/b.safetensors", "model/empty.txt"]
    out = tmp_path / "out"
    out.mkdir()
    unpack(tmp_path / "1.tar", out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        name: path.read_bytes() for name, path in given_files.items()
    }


def test_what_tar_itself_makes_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    files(folder)
    with tarfile.open(tmp_path / "folder.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(folder, "model")
    with tarfile.open(tmp_path / "flat.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in folder.iterdir():
            tar.add(path, path.name)
    for name in ("folder.tar", "flat.tar"):
        found = {e.name: e.size for e in read_entries(tmp_path / name)}
        assert found == {"a.json": 2, "b.safetensors": 1000, "empty.txt": 0}


HOSTILE = {
    "parent": [(entry("../a.json"), b"x")],
    "absolute": [(entry("/etc/a.json"), b"x")],
    "deep": [(entry("a/b/c.json"), b"x")],
    "dot": [(entry("./a.json"), b"x")],
    "hidden": [(entry("m/.a.json"), b"x")],
    "symlink": [(entry("m/a.json", tarfile.SYMTYPE, "/etc/passwd"), b"")],
    "hardlink": [(entry("m/a.json", tarfile.LNKTYPE, "m/b.json"), b"")],
    "device": [(entry("m/a.json", tarfile.CHRTYPE), b"")],
    "fifo": [(entry("m/a.json", tarfile.FIFOTYPE), b"")],
    "sparse": [(entry("m/a.json", tarfile.GNUTYPE_SPARSE), b"x")],
    "pax": [(entry("m/a.json", tarfile.XHDTYPE), b"20 size=99999999999\n")],
    "long name": [(entry("m/" + "a" * 200 + ".json"), b"x")],
    "pickle": [(entry("m/open_clip_pytorch_model.bin"), b"x")],
    "code": [(entry("m/model.py"), b"x")],
    "twice": [(entry("m/a.json"), b"x"), (entry("m/a.json"), b"y")],
    "two folders": [(entry("m/a.json"), b"x"), (entry("n/b.json"), b"y")],
    "many": [(entry(f"m/{i}.json"), b"") for i in range(65)],
    "nothing": [],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "hostile.tar", *HOSTILE[name])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InvalidArgument) as caught:
        unpack(path, out)
    assert caught.value.reason == "ARTIFACT_INVALID"
    assert not list(out.iterdir())


def test_a_size_beyond_the_file_is_refused(tmp_path: Path) -> None:
    info = entry("m/a.json")
    info.size = 1 << 40
    (tmp_path / "cut.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 512)
    with pytest.raises(InvalidArgument, match="is cut"):
        read_entries(tmp_path / "cut.tar")


@given(st.binary(max_size=2000))
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "noise.tar"
    path.write_bytes(noise)
    with pytest.raises(InvalidArgument):
        read_entries(path)
