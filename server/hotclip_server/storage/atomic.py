"""Files that are whole or absent, whenever the process or the machine dies.

Write to a temporary name in the same folder → fsync → rename → fsync the folder. What a
crash leaves behind has a name that starts with `TEMPORARY`; `remove_leftovers` clears it
when the server starts.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import sqlite3
from pathlib import Path

from hotclip_server.errors import ResourceExhausted
from hotclip_server.pace import PIECE_BYTES, Pause, never

TEMPORARY = ".tmp-"


class Files:
    """The steps that a crash may fall between, one method each."""

    def write(self, path: Path, data: bytes) -> None:
        """Creates a file that did not exist."""
        with path.open("xb") as file:
            file.write(data)

    def sync(self, path: Path) -> None:
        """Returns when a file's content, or a folder's list of names, is on the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Replaces `target` in one step."""
        source.rename(target)


_FILES = Files()


def write_atomically(path: Path, data: bytes, *, files: Files = _FILES) -> None:
    """Writes `data` as `path`; a reader and a crash see the old file or the new, never half.

    Raises:
        ResourceExhausted: the disk is full; reason DISK_FULL.
        OSError: any other failure; `path` is as it was.
    """
    temporary = _temporary_name(path.parent)
    try:
        files.write(temporary, data)
        files.sync(temporary)
        files.rename(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise_if_disk_full(error)
        raise
    files.sync(path.parent)


def new_folder(parent: Path) -> Path:
    """Makes a temporary folder inside `parent`, to be filled and given to `publish_folder`."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = _temporary_name(parent)
    folder.mkdir()
    return folder


def publish_folder(temporary: Path, final: Path, *, files: Files = _FILES) -> None:
    """Makes a filled folder appear as `final`, whole or not at all.

    `final` is content-addressed: if it is there already it holds the same, and `temporary`
    is removed.

    Raises:
        ResourceExhausted: the disk is full; reason DISK_FULL.
        OSError: any other failure; `final` is not there.
    """
    try:
        if final.exists():
            shutil.rmtree(temporary)
            return
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                files.sync(Path(folder, name))
            files.sync(Path(folder))
        files.rename(temporary, final)
    except OSError as error:
        if final.exists():  # Another thread published the same content first.
            shutil.rmtree(temporary, ignore_errors=True)
            return
        raise_if_disk_full(error)
        raise
    files.sync(final.parent)


def publish_file(temporary: Path, final: Path, *, files: Files = _FILES) -> None:
    """Makes a written file appear as `final`, whole or not at all; replaces what was there.

    Raises:
        ResourceExhausted: the disk is full; reason DISK_FULL.
        OSError: any other failure; `final` is as it was.
    """
    try:
        files.sync(temporary)
        files.rename(temporary, final)
    except OSError as error:
        raise_if_disk_full(error)
        raise
    files.sync(final.parent)


def remove_leftovers(folder: Path) -> int:
    """Removes what a crash left in `folder`; call it before anything writes there.

    Returns:
        How many files and folders it removed.
    """
    if not folder.is_dir():
        return 0
    leftovers = [entry for entry in folder.iterdir() if entry.name.startswith(TEMPORARY)]
    for entry in leftovers:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return len(leftovers)


def sha256_file(path: Path, pause: Pause = never) -> str:
    """sha256 of a file's content, hex.

    Args:
        pause: Called between two pieces of PIECE_BYTES; may wait.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            pause()
    return digest.hexdigest()


def require_free_space(folder: Path, size: int, *, floor: int = 0) -> None:
    """Refuses a write that would leave less than `floor` bytes free.

    Raises:
        ResourceExhausted: reason DISK_FULL.
    """
    free = shutil.disk_usage(folder).free
    if free - size < floor:
        raise ResourceExhausted(
            f"{size} bytes do not fit on the disk: {free} free, of which {floor} stay free",
            reason="DISK_FULL",
            metadata={"free_bytes": str(free), "needed_bytes": str(size)},
        )


def raise_if_disk_full(error: BaseException) -> None:
    """Raises ResourceExhausted with reason DISK_FULL if that is what `error` means."""
    if is_disk_full(error):
        raise ResourceExhausted("the disk is full", reason="DISK_FULL") from error


def is_disk_full(error: BaseException) -> bool:
    """Whether that is what `error` means, of the system or of the database."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # SQLAlchemy wraps the driver's.
    cause = getattr(error, "orig", error)
    return (
        isinstance(cause, sqlite3.OperationalError)
        and getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    )


def _temporary_name(folder: Path) -> Path:
    return folder / f"{TEMPORARY}{secrets.token_hex(8)}"
