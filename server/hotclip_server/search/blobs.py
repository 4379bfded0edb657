"""Large images of sources as files, named by the sha256 of what they hold.

A file goes when no row names it. Its row may be on the way, or about to come back: who writes
rows holds the names until that is decided, and what is held, or was since a sweep began, stays.
"""

from __future__ import annotations

import errno
import hashlib
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from pathlib import Path

from hotclip_server.errors import DataLoss
from hotclip_server.storage.atomic import remove_leftovers, write_atomically

_NAME = re.compile(r"[0-9a-f]{64}")
_AT_ONCE, _REST_S = 32, 0.001
"""Files that are removed without a pause, and the pause."""


class BlobHold:
    """Blobs that stay though no row names them yet. Any thread; made by `SourceBlobs.holding`."""

    def __init__(self, blobs: SourceBlobs) -> None:
        self._blobs = blobs
        self.names: set[str] = set()
        """Held so far."""
        self.stored: set[str] = set()
        """Those of them that rows name now; for who wrote the rows to fill in."""
        self.ended = False

    def put(self, data: bytes) -> str:
        """Stores bytes; returns their name. Blocks.

        A file of that name that is damaged is put right.

        Raises:
            ResourceExhausted: the disk is full.
        """
        name = hashlib.sha256(data).hexdigest()
        self.keep([name])
        self._blobs.write(name, data)
        return name

    def keep(self, names: Iterable[str]) -> None:
        """Holds blobs that are there."""
        self._blobs.hold(self, names)


class SourceBlobs:
    """A folder of blobs. Every method that reads or writes it blocks; any thread.

    Args:
        root: The folder, e.g. <data_dir>/sources.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._held = Counter[str]()
        self._spared: set[str] | None = None

    @contextmanager
    def holding(self) -> Iterator[BlobHold]:
        """What is put with it, or kept, stays until the block ends."""
        hold = BlobHold(self)
        try:
            yield hold
        finally:
            with self._lock:
                # A thread whose caller was cancelled may still put some: nobody stores their rows.
                hold.ended = True
                self._held -= Counter(hold.names)

    def hold(self, hold: BlobHold, names: Iterable[str]) -> None:
        """See `BlobHold.keep`."""
        with self._lock:
            fresh = set() if hold.ended else set(names) - hold.names
            hold.names |= fresh
            self._held.update(fresh)
            if self._spared is not None:
                self._spared |= fresh

    def write(self, name: str, data: bytes) -> None:
        """See `BlobHold.put`."""
        path = self._path(name)
        if not _is_content(path, data):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)

    def get(self, name: str) -> bytes:
        """The bytes of a blob.

        Raises:
            DataLoss: it is missing or damaged; reason SOURCE_DAMAGED, metadata: its name as `blob`.
        """
        try:
            data = self._path(name).read_bytes()
        except FileNotFoundError as error:
            raise _lost(name, "is missing") from error
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise _lost(name, "can't be read from the disk") from error
        if hashlib.sha256(data).hexdigest() != name:
            raise _lost(name, "is damaged")
        return data

    def names(self) -> set[str]:
        """All blobs."""
        return {
            path.name
            for folder in self._root.glob("??")
            for path in folder.iterdir()
            if _NAME.fullmatch(path.name)
        }

    def sweep(self, used: AbstractSet[str]) -> int:
        """Removes blobs that nothing names, and what a crash left; only while nothing is written.

        Returns:
            How many blobs it removed.
        """
        for folder in list(self._root.glob("??")):
            remove_leftovers(folder)
        return self.remove(self.names() - used, frozenset())

    @contextmanager
    def sparing(self) -> Iterator[AbstractSet[str]]:
        """Names that are held now, or at any time until the block ends; one block at a time."""
        with self._lock:
            spared = self._spared = {name for name, count in self._held.items() if count}
        try:
            yield spared
        finally:
            with self._lock:
                self._spared = None

    def remove(self, names: AbstractSet[str], spared: AbstractSet[str]) -> int:
        """Removes blobs that are neither held nor `spared`; how many."""
        removed = 0
        for number, name in enumerate(names, 1):
            if number % _AT_ONCE == 0:
                time.sleep(_REST_S)  # Who waits for the lock, as the event loop does, gets it.
            with self._lock:
                if name in spared or self._held[name]:
                    continue
                with suppress(FileNotFoundError):
                    self._path(name).unlink()
                    removed += 1
        return removed

    def _path(self, name: str) -> Path:
        return self._root / name[:2] / name


def _is_content(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _lost(name: str, how: str) -> DataLoss:
    return DataLoss(f"source blob {name} {how}", reason="SOURCE_DAMAGED", metadata={"blob": name})
