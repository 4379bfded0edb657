"""Keeps a second server out of a data directory."""

from __future__ import annotations

import fcntl
from io import TextIOWrapper
from pathlib import Path


class FolderLock:
    """An advisory lock on a file in the folder; the kernel frees it when the process dies.

    Args:
        folder: Exists when `open` is called.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: TextIOWrapper | None = None

    def open(self) -> None:
        """Takes the lock.

        Raises:
            OSError: another process holds it.
        """
        file = (self._folder / "lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OSError(f"another server uses the data directory {self._folder}") from None
        self._file = file

    def close(self) -> None:
        """Frees the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None
