"""Copies of files that are mostly holes, and how much of a disk such files take."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

_PIECE_BYTES = 1 << 20
_NOT_HERE = (errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
"""The system, or this file system, has no such call."""


def used_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk: of holes nothing."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            found += path.stat().st_blocks * 512
    return found


def copy_folder(source: Path, target: Path) -> None:
    """Copies files and folders; `target` must not exist. Holes stay holes, and where the file
    system can share what is in two files it does. Nothing is synced.

    Raises:
        FileNotFoundError: a file was removed, or got another name, before its turn came.
    """
    target.mkdir()
    for entry in os.scandir(source):
        copy = copy_folder if entry.is_dir(follow_symlinks=False) else _copy_file
        copy(Path(entry.path), target / entry.name)


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as written:
        size = os.fstat(read.fileno()).st_size
        for start, end in _data(read.fileno(), size):
            _copy_range(read.fileno(), written.fileno(), start, end)
        written.truncate(size)


def _data(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Where there is something: start and end of each part."""
    if not hasattr(os, "SEEK_DATA"):
        yield 0, size
        return
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
            end = min(size, os.lseek(file, start, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # Nothing but a hole is left.
            if error.errno not in _NOT_HERE:
                raise
            start, end = end, size
        if start < end:
            yield start, end


def _copy_range(read: int, written: int, start: int, end: int) -> None:
    while start < end and hasattr(os, "copy_file_range"):
        try:
            done = os.copy_file_range(read, written, end - start, start, start)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            break
        if done == 0:
            break  # It was cut meanwhile, or this file system does not say that it can't.
        start += done
    while start < end:
        piece = os.pread(read, min(_PIECE_BYTES, end - start), start)
        if not piece:
            return
        start += os.pwrite(written, piece, start)
