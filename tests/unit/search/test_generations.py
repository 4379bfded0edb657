"""A generation is on the disk before it counts, whatever its engine renames meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hotclip_server.errors import ResourceExhausted
from hotclip_server.search import generations
from hotclip_server.storage.atomic import Files


class Renaming(Files):
    """A file gets another name just before its turn comes."""

    left = 0
    synced: list[Path] = []  # noqa: RUF012 - set by each test

    def sync(self, path: Path) -> None:
        if Renaming.left and path.name.startswith("open-"):
            Renaming.left -= 1
            path.rename(path.with_name(f"open-{Renaming.left}"))
        super().sync(path)
        Renaming.synced.append(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / "open-x").write_bytes(b"log")
    (tmp_path / "config").write_bytes(b"{}")
    monkeypatch.setattr(generations, "Files", Renaming)
    Renaming.synced = []
    return tmp_path


def test_what_was_renamed_is_synced_under_its_new_name(folder: Path) -> None:
    Renaming.left = 2
    generations._sync(folder)
    names = {path.relative_to(folder).as_posix() for path in Renaming.synced}
    assert names >= {"wal/open-0", "config", "wal", "."}


def test_what_never_stays_is_a_fault(folder: Path) -> None:
    Renaming.left = 1000
    with pytest.raises(FileNotFoundError):
        generations._sync(folder)
    Renaming.left = 0


def test_what_was_renamed_is_copied_under_its_new_name(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_folder = generations.copy_folder

    def renamed(source: Path, target: Path) -> None:
        copy_folder(source, target)
        if (source / "wal" / "open-x").exists():
            (source / "wal" / "open-x").rename(source / "wal" / "open-y")
            raise FileNotFoundError(source / "wal" / "open-x")

    monkeypatch.setattr(generations, "copy_folder", renamed)
    target = tmp_path_factory.mktemp("parent") / "copy"
    generations.copy(folder, target)
    assert [path.name for path in (target / "wal").iterdir()] == ["open-y"]


def test_what_may_not_fit_is_not_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine that serves would be killed by what fills its disk."""
    usage = shutil.disk_usage(folder)
    target = folder.parent / f"{folder.name}-copy"
    (folder / "config").write_bytes(bytes(1 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=65 << 20))
    with pytest.raises(ResourceExhausted):
        generations.copy(folder, target)
    assert not target.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=67 << 20))
    generations.copy(folder, target)
    assert (target / "config").stat().st_size == 1 << 20
