"""Archives on their way in: a file each, named by the content that it is to have."""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from hotclip_server.artifacts import records
from hotclip_server.artifacts.archive import read_entries
from hotclip_server.artifacts.records import ArtifactFormat, ArtifactRecord, Origin
from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.errors import DataLoss, InvalidArgument, OutOfRange, ResourceExhausted
from hotclip_server.storage.atomic import raise_if_disk_full, require_free_space, sha256_file

log = logging.getLogger(__name__)

MOST_UPLOADS = 16
IDLE_S = 15 * 60.0
"""Seconds for which an upload that nobody goes on with does not give way to others."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """What is refused. Bytes of a file; bytes that stay free on the disk; seconds for which an
    unfinished upload is kept."""

    max_bytes: int
    min_free_disk_bytes: int
    expiry_s: float


@dataclass(frozen=True, kw_only=True)
class UploadState:
    """How far an upload came; `artifact` is set once it is complete."""

    offset: int
    artifact: ArtifactRecord | None = None


class ArtifactUploads:
    """Every method blocks; any thread.

    Args:
        root: Made with the first upload; nothing else writes there.
    """

    def __init__(self, root: Path, artifacts: ArtifactStore, limits: UploadLimits) -> None:
        self._root = root
        self._artifacts = artifacts
        self._limits = limits
        self._lock = threading.Lock()

    def state(self, sha256: str) -> UploadState:
        """How much of a file is here.

        Raises:
            InvalidArgument: not a sha256.
        """
        part = self._part(sha256)
        known = self._artifacts.find_whole(sha256)
        if known is not None:
            return UploadState(offset=known.size_bytes, artifact=known)
        return UploadState(offset=part.stat().st_size if part.is_file() else 0)

    def write(self, sha256: str, total: int, offset: int, data: bytes) -> UploadState:
        """Takes a part; the last one makes an artifact of the file.

        Raises:
            InvalidArgument: a bad number, or the file is no archive of a model; reason
                ARTIFACT_INVALID.
            OutOfRange: parts before it are missing.
            ResourceExhausted: the file is too large, the disk is full, or too many uploads are
                unfinished.
            DataLoss: the file has another sha256; it is removed.
        """
        part = self._part(sha256)
        if not data or offset + len(data) > total:
            raise InvalidArgument.field("data", "is empty, or longer than the file")
        if total > self._limits.max_bytes:
            raise ResourceExhausted(
                f"the file has {total} bytes, the limit is {self._limits.max_bytes}",
                reason="ARTIFACT_TOO_LARGE",
            )
        with self._lock:
            state = self.state(sha256)
            if state.artifact is not None or offset + len(data) <= state.offset:
                return state
            if offset != state.offset:
                raise OutOfRange.field("offset", f"is {offset}, the server has {state.offset}")
            self._append(part, data, total)
            if offset + len(data) < total:
                return UploadState(offset=offset + len(data))
            try:
                return UploadState(offset=total, artifact=self._finish(part, sha256))
            finally:
                part.unlink(missing_ok=True)

    def _append(self, part: Path, data: bytes, total: int) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        if not part.exists():
            self._expire()
            self._make_room()
            require_free_space(self._root, total, floor=self._limits.min_free_disk_bytes)
        require_free_space(self._root, len(data), floor=self._limits.min_free_disk_bytes)
        try:
            with part.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise_if_disk_full(error)
            raise

    def _make_room(self) -> None:
        """Of too many uploads the one that was left for longest gives way to a new one."""
        parts = sorted((part.stat().st_mtime, part) for part in self._root.glob("*.part"))
        if len(parts) < MOST_UPLOADS:
            return
        last, oldest = parts[0]
        if last > time.time() - IDLE_S:
            raise ResourceExhausted(
                f"{len(parts)} uploads are unfinished already, each of them in use within the last "
                f"{IDLE_S:.0f} s",
                reason="UPLOADS_TOO_MANY",
            )
        log.warning("an upload of %s gives way to another one", oldest.stem)
        oldest.unlink()

    def _finish(self, part: Path, sha256: str) -> ArtifactRecord:
        if sha256_file(part) != sha256:
            raise DataLoss("the file that came has another sha256", reason="CHECKSUM")
        return self._artifacts.add(part, sha256, format_of(part), Origin())

    def _expire(self) -> None:
        oldest = time.time() - self._limits.expiry_s
        for part in self._root.glob("*.part"):
            if part.stat().st_mtime < oldest:
                log.info("an upload of %s was left and is removed", part.stem)
                part.unlink(missing_ok=True)

    def _part(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise InvalidArgument.field("sha256", "must be 64 lower-case hex digits")
        return self._root / f"{sha256}.part"


def format_of(archive: Path) -> ArtifactFormat:
    """What an archive holds, by the names of its files.

    Raises:
        InvalidArgument: nothing that is known; reason ARTIFACT_INVALID.
    """
    names = {entry.name for entry in read_entries(archive)}
    if names >= records.DELTA_FILES:
        return ArtifactFormat.DELTA
    if "open_clip_config.json" not in names:
        raise InvalidArgument("it has no open_clip_config.json", reason="ARTIFACT_INVALID")
    if not any(name.endswith(".safetensors") for name in names):
        raise InvalidArgument("it has no weights as safetensors", reason="ARTIFACT_INVALID")
    return ArtifactFormat.ONNX if names >= records.ONNX_FILES else ArtifactFormat.OPEN_CLIP
