"""Large images of sources as files, named by the sha256 of what they hold."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Set as AbstractSet
from pathlib import Path

from hotclip_server.errors import DataLoss
from hotclip_server.storage.atomic import remove_leftovers, write_atomically

_NAME = re.compile(r"[0-9a-f]{64}")


class SourceBlobs:
    """A folder of blobs. Every method blocks; any thread.

    Args:
        root: The folder, e.g. <data_dir>/sources.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, data: bytes) -> str:
        """Stores bytes; returns their name.

        Raises:
            ResourceExhausted: the disk is full.
        """
        name = hashlib.sha256(data).hexdigest()
        path = self._path(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        return name

    def get(self, name: str) -> bytes:
        """The bytes of a blob.

        Raises:
            DataLoss: it is missing or damaged.
        """
        try:
            data = self._path(name).read_bytes()
        except FileNotFoundError as error:
            raise DataLoss(f"source blob {name} is missing", reason="SOURCE_DAMAGED") from error
        if hashlib.sha256(data).hexdigest() != name:
            raise DataLoss(f"source blob {name} is damaged", reason="SOURCE_DAMAGED")
        return data

    def sweep(self, used: AbstractSet[str]) -> int:
        """Removes blobs that nothing names; only while nothing is written.

        Returns:
            How many it removed.
        """
        removed = 0
        for folder in list(self._root.glob("??")):
            remove_leftovers(folder)
            for path in list(folder.iterdir()):
                if _NAME.fullmatch(path.name) and path.name not in used:
                    path.unlink()
                    removed += 1
        return removed

    def _path(self, name: str) -> Path:
        return self._root / name[:2] / name
