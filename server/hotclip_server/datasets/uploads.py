"""The folder of uploads that go on: a folder each, until they are stored or too old."""

from __future__ import annotations

import logging
import math
import re
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from hotclip_server.datasets.records import DatasetLimits, UploadTerms
from hotclip_server.datasets.upload import SPOOL, DatasetUpload
from hotclip_server.errors import HotclipError, NotFound, ResourceExhausted
from hotclip_server.storage.atomic import remove_leftovers, write_atomically

log = logging.getLogger(__name__)

UPLOAD_ID = re.compile(r"up-[0-9a-f]{32}")
MOST_REFUSED = 256
_STORED = "stored"


class Uploads:
    """Every method blocks; any thread.

    Args:
        root: Made by `open`.
    """

    def __init__(self, root: Path, limits: DatasetLimits) -> None:
        self._root = root
        self._limits = limits
        self._lock = threading.Lock()
        self._open: dict[str, DatasetUpload] = {}
        # Why uploads were refused, for callers whose connection broke at that moment.
        self._refused: dict[str, HotclipError] = {}

    def open(self) -> None:
        """Removes what a crash left half made, and uploads that are too old."""
        self._root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._root)
        self.expire()

    def begin(self, terms: UploadTerms) -> DatasetUpload:
        """A new upload.

        Raises:
            ResourceExhausted: too many are unfinished, and none of them was left, or the disk is
                full.
        """
        self.expire()
        with self._lock:
            unfinished = [spool.parent for spool in self._root.glob(f"up-*/{SPOOL}")]
            if len(unfinished) >= self._limits.max_uploads and not self._make_room(unfinished):
                raise ResourceExhausted(
                    f"{len(unfinished)} uploads are unfinished already, each of them in use within "
                    f"the last {self._limits.upload_idle_s:.0f} s",
                    reason="UPLOADS_TOO_MANY",
                )
            return self._opened(self._root / f"up-{secrets.token_hex(16)}", terms)

    def resume(self, upload_id: str) -> DatasetUpload | str:
        """An upload that goes on, or the id of the dataset that it has become.

        A call that still adds to it fails from now on with UPLOAD_TAKEN_OVER.

        Raises:
            NotFound: there is none, or it was too old.
            HotclipError: why it was refused, if it was.
        """
        with self._lock:
            if upload_id in self._refused:
                raise self._refused[upload_id].with_traceback(None)
            folder = self._root / upload_id
            if not UPLOAD_ID.fullmatch(upload_id) or not folder.is_dir():
                raise NotFound(f"no unfinished upload {upload_id!r}", reason="UPLOAD_NOT_FOUND")
            if (folder / _STORED).exists():
                return (folder / _STORED).read_text()
            if before := self._open.pop(upload_id, None):
                before.suspend()
            return self._opened(folder, None)

    def refuse(self, upload: DatasetUpload, why: HotclipError) -> None:
        """Ends an upload and removes it. One that another call goes on with stays."""
        if upload.closed:
            return
        upload.discard()
        with self._lock:
            self._open.pop(upload.id, None)
            self._remember(upload.id, _bare(why))

    def set_stored(self, upload: DatasetUpload, dataset_id: str) -> None:
        """Ends an upload; who did not hear of it learns from `resume` what it has become."""
        upload.suspend()
        with self._lock:
            self._open.pop(upload.id, None)
            write_atomically(upload.folder / _STORED, dataset_id.encode())
            for entry in upload.folder.iterdir():
                if entry.name != _STORED:
                    entry.unlink()

    def expire(self) -> None:
        """Removes uploads to which nothing came for `upload_expiry_s` seconds."""
        with self._lock:
            self._open = {name: each for name, each in self._open.items() if not each.closed}
            oldest = time.time() - self._limits.upload_expiry_s
            for folder in self._root.glob("up-*"):
                if folder.name not in self._open and last_used(folder) < oldest:
                    log.info("upload %s was left and is removed", folder.name)
                    shutil.rmtree(folder, ignore_errors=True)

    def _make_room(self, unfinished: Sequence[Path]) -> bool:
        """Removes the upload that nobody went on with for the longest time, if that is long."""
        idle = [(last_used(each), each) for each in unfinished if each.name not in self._open]
        last, oldest = min(idle, default=(math.inf, self._root))
        if last > time.time() - self._limits.upload_idle_s:
            return False
        log.warning("upload %s gives way to another one", oldest.name)
        shutil.rmtree(oldest, ignore_errors=True)
        gone = f"upload {oldest.name!r} gave way to others, as nobody went on with it"
        self._remember(oldest.name, NotFound(gone, reason="UPLOAD_NOT_FOUND"))
        return True

    def _remember(self, upload_id: str, why: HotclipError) -> None:
        self._refused[upload_id] = why
        while len(self._refused) > MOST_REFUSED:
            del self._refused[next(iter(self._refused))]

    def _opened(self, folder: Path, terms: UploadTerms | None) -> DatasetUpload:
        try:
            upload = DatasetUpload(folder, self._limits, terms)
        except BaseException:
            if terms is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        self._open[folder.name] = upload
        return upload


def _bare(error: HotclipError) -> HotclipError:
    """The same error without the frames that raised it, which hold whole messages."""
    kept = error.__class__.__new__(error.__class__)
    kept.args = error.args
    kept.__dict__.update(error.__dict__)
    return kept


def last_used(folder: Path) -> float:
    """Seconds since the epoch; infinite if somebody is removing it."""
    try:
        times = [folder.stat().st_mtime]
        times += [entry.stat().st_mtime for entry in folder.iterdir()]
    except FileNotFoundError:
        return math.inf
    return max(times)
