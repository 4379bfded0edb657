"""Artifacts: what the server tells of them, and a download on its way to the disk."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from hotclip._jobs import Job, when
from hotclip._reconnect import Attempts
from hotclip.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    HotclipError,
    InvalidArgument,
)
from hotclip_proto.v1 import artifact_pb2, model_pb2

FormatName: TypeAlias = Literal["open_clip", "onnx", "delta"]
Progress: TypeAlias = Callable[[int, int], None]
"""Told how many bytes of how many are done."""

_READ_BYTES = 1 << 20


class ArtifactFormat(StrEnum):
    """What is in an artifact; its value is its name."""

    UNKNOWN = "UNKNOWN"
    OPEN_CLIP = "OPEN_CLIP"
    ONNX = "ONNX"
    DELTA = "DELTA"


_FORMATS = {
    artifact_pb2.ARTIFACT_FORMAT_OPEN_CLIP: ArtifactFormat.OPEN_CLIP,
    artifact_pb2.ARTIFACT_FORMAT_ONNX: ArtifactFormat.ONNX,
    artifact_pb2.ARTIFACT_FORMAT_DELTA: ArtifactFormat.DELTA,
}
_NUMBERS = {kind.value.lower(): number for number, kind in _FORMATS.items()}


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file on the server that holds a whole model, or what differs from one."""

    id: str
    format: ArtifactFormat
    version: str
    """Version that was exported; empty if it was uploaded."""
    base_version: str
    """Of a delta: the version that it is applied to."""
    model: str
    size_bytes: int
    sha256: str
    create_time: datetime | None
    file_name: str


def artifact(message: artifact_pb2.Artifact) -> Artifact:
    """Parses an artifact."""
    return Artifact(
        id=message.id,
        format=_FORMATS.get(message.format, ArtifactFormat.UNKNOWN),
        version=message.version,
        base_version=message.base_version,
        model=message.model,
        size_bytes=message.size_bytes,
        sha256=message.sha256,
        create_time=when(message.create_time),
        file_name=message.file_name or f"{message.id}.tar",
    )


def format_of(name: str) -> artifact_pb2.ArtifactFormat.ValueType:
    """The format behind a name: open_clip, onnx or delta."""
    found = _NUMBERS.get(name.lower().replace("-", "_"))
    if found is None:
        raise InvalidArgument.field("format", f"{name!r} is none of {', '.join(_NUMBERS)}")
    return found


def export_request(ended: Job, name: str) -> model_pb2.ExportRequest:
    """Asks for the version that a job made.

    Raises:
        FailedPrecondition: It made none; reason NOTHING_TO_SAVE.
    """
    if not ended.result_version:
        raise FailedPrecondition(f"job {ended.name} made no version", reason="NOTHING_TO_SAVE")
    return model_pb2.ExportRequest(
        version=ended.result_version, format=format_of(name), request_id=uuid.uuid4().hex
    )


class Download:
    """Writes an artifact beside its final name and renames it once it is whole.

    What another attempt, also of another process, left of the same artifact is kept and
    gone on with.

    Args:
        path: The file, or an existing folder for a file of the artifact's own name.
    """

    def __init__(self, source: Artifact, path: Path, progress: Progress | None) -> None:
        self._source = source
        self._path = path / source.file_name if path.is_dir() else path
        self._part = self._path.with_name(f"{self._path.name}.{source.id}.part")
        self._progress = progress
        self._attempts = Attempts()
        self._digest = hashlib.sha256()
        self._place = 0
        self._told = False
        self._file: BinaryIO | None = None

    def open(self) -> Path | None:
        """Finds what is there; the path if nothing is left to do.

        Raises:
            AlreadyExists: The file holds something else.
            InvalidArgument: It can't be written there.
        """
        if self._path.exists():
            if not self._path.is_file() or sha256_of(self._path) != self._source.sha256:
                raise AlreadyExists(f"{self._path} exists and is not this artifact")
            return self._path
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("a+b")
        except OSError as error:
            raise InvalidArgument.field("path", f"{self._path}: {error}") from error
        self._file.seek(0)
        while data := self._file.read(_READ_BYTES):
            self._digest.update(data)
            self._place += len(data)
        if self._place > self._source.size_bytes:  # not of this artifact after all
            self._restart(self._file)
        return None

    def request(self) -> artifact_pb2.DownloadRequest:
        """What to ask a new connection."""
        return artifact_pb2.DownloadRequest(artifact=self._source.id, offset=self._place)

    def accept(self, message: artifact_pb2.DownloadResponse) -> None:
        """Writes a chunk; raises DataLoss if it does not follow what is there."""
        if self._file is None:
            raise RuntimeError("the download is not open; this is a bug")
        self._attempts.progressed()
        if message.offset != self._place:
            raise DataLoss(f"bytes from {message.offset} follow {self._place}", reason="CHUNK_GAP")
        self._file.write(message.data)
        self._digest.update(message.data)
        self._place += len(message.data)
        self._told = bool(message.sha256)
        if self._progress is not None:
            self._progress(self._place, self._source.size_bytes)

    def broken(self, error: HotclipError) -> float:
        """Seconds to wait before connecting again; raises what does not pass."""
        return self._attempts.pause(error)

    def finished(self) -> float | None:
        """After a stream ended in order: None if that was all, else as `broken`."""
        return None if self._told else self._attempts.ended()

    def finish(self) -> Path:
        """Verifies the file and gives it its name.

        Raises:
            DataLoss: It is not what the server has; it is removed, the next download begins anew.
        """
        if self._file is None:
            raise RuntimeError("the download is not open; this is a bug")
        if self._digest.hexdigest() != self._source.sha256:
            self._restart(self._file)
            self.close()
            self._part.unlink(missing_ok=True)
            raise DataLoss(f"artifact {self._source.id} came damaged", reason="CHECKSUM")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        self._part.replace(self._path)
        return self._path

    def close(self) -> None:
        """Closes the file, if it is open; what came is kept."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _restart(self, file: BinaryIO) -> None:
        file.truncate(0)
        self._digest, self._place = hashlib.sha256(), 0


def sha256_of(path: Path) -> str:
    """Of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
