"""Kill the process between any two steps of a write: the old file or the new, never half."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hotclip_server.errors import ResourceExhausted
from hotclip_server.storage.atomic import (
    TEMPORARY,
    Files,
    new_folder,
    publish_folder,
    remove_leftovers,
    require_free_space,
    sha256_file,
    write_atomically,
)

KILLED = 137

# A real process that dies without any clean-up before step argv[2] of its write.
CHILD = """
import os, sys
from pathlib import Path
from hotclip_server.storage.atomic import Files, new_folder, publish_folder, write_atomically

class Dying(Files):
    left = int(sys.argv[3])
    def step(self):
        if self.left == 0:
            os._exit(137)
        self.left -= 1
    def write(self, path, data):
        self.step()
        half = data[: len(data) // 2]
        with path.open("xb") as file:
            file.write(half); file.flush()
            self.step()
            file.write(data[len(half):])
    def sync(self, path):
        self.step(); super().sync(path)
    def rename(self, source, target):
        self.step(); super().rename(source, target)

root = Path(sys.argv[1])
if sys.argv[2] == "file":
    write_atomically(root / "blob", b"new" * 1000, files=Dying())
else:
    folder = new_folder(root)
    (folder / "inner").mkdir()
    for name in ("a", "b", "inner/c"):
        (folder / name).write_bytes(name.encode())
    publish_folder(folder, root / "final", files=Dying())
"""


def run_child(root: Path, what: str, steps: int) -> int:
    command = [sys.executable, "-c", CHILD, str(root), what, str(steps)]
    return subprocess.run(command, check=False, timeout=60).returncode


def test_a_file_is_old_or_new_at_every_step(tmp_path: Path) -> None:
    seen = set()
    for steps in range(20):
        root = tmp_path / str(steps)
        root.mkdir()
        (root / "blob").write_bytes(b"old")
        code = run_child(root, "file", steps)
        assert code in (0, KILLED)
        content = (root / "blob").read_bytes()
        assert content in (b"old", b"new" * 1000)
        seen.add((code, content[:3]))
        remove_leftovers(root)
        assert [entry.name for entry in root.iterdir()] == ["blob"]
        if code == 0:
            break
    assert seen == {(KILLED, b"old"), (KILLED, b"new"), (0, b"new")}


def test_a_folder_is_whole_or_absent_at_every_step(tmp_path: Path) -> None:
    seen = set()
    for steps in range(20):
        root = tmp_path / str(steps)
        code = run_child(root, "folder", steps)
        assert code in (0, KILLED)
        final = root / "final"
        if final.exists():
            assert {n: (final / n).read_text() for n in ("a", "b", "inner/c")} == {
                n: n for n in ("a", "b", "inner/c")
            }
        seen.add((code, final.exists()))
        remove_leftovers(root)
        assert [entry.name for entry in root.iterdir()] == ["final"] * final.exists()
        if code == 0:
            break
    assert seen == {(KILLED, False), (KILLED, True), (0, True)}


class Recording(Files):
    """Writes for real and notes the order of the steps."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []

    def write(self, path: Path, data: bytes) -> None:
        self.steps.append(("write", _kind(path)))
        super().write(path, data)

    def sync(self, path: Path) -> None:
        self.steps.append(("sync", _kind(path)))
        super().sync(path)

    def rename(self, source: Path, target: Path) -> None:
        self.steps.append(("rename", _kind(source)))
        super().rename(source, target)


def _kind(path: Path) -> str:
    return "temporary" if path.name.startswith(TEMPORARY) else path.name


def test_content_is_on_the_disk_before_its_name(tmp_path: Path) -> None:
    files = Recording()
    write_atomically(tmp_path / "blob", b"x", files=files)
    assert files.steps == [
        ("write", "temporary"),
        ("sync", "temporary"),
        ("rename", "temporary"),
        ("sync", tmp_path.name),
    ]


def test_every_file_of_a_folder_is_synced_before_the_folder_appears(tmp_path: Path) -> None:
    files = Recording()
    folder = new_folder(tmp_path)
    (folder / "a").touch()
    publish_folder(folder, tmp_path / "final", files=files)
    assert files.steps == [
        ("sync", "a"),
        ("sync", "temporary"),
        ("rename", "temporary"),
        ("sync", tmp_path.name),
    ]


class Full(Files):
    """A disk that is full when a file is to be synced."""

    def sync(self, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"old")
    with pytest.raises(ResourceExhausted) as caught:
        write_atomically(tmp_path / "blob", b"new", files=Full())
    assert caught.value.reason == "DISK_FULL"
    assert [(e.name, e.read_bytes()) for e in tmp_path.iterdir()] == [("blob", b"old")]


def test_free_space_is_checked_with_a_floor(tmp_path: Path) -> None:
    require_free_space(tmp_path, 1)
    with pytest.raises(ResourceExhausted, match="do not fit"):
        require_free_space(tmp_path, 1, floor=1 << 62)


def test_publishing_the_same_content_twice_keeps_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        folder = new_folder(tmp_path)
        (folder / "a").write_bytes(b"same")
        publish_folder(folder, tmp_path / "final")
    assert [entry.name for entry in tmp_path.iterdir()] == ["final"]


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}file").touch()
    (tmp_path / f"{TEMPORARY}folder").mkdir()
    (tmp_path / "kept").touch()
    assert remove_leftovers(tmp_path) == 2
    assert remove_leftovers(tmp_path / "absent") == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert sha256_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
