"""Writes a stored version as an artifact.

Its config names the text tower as the architecture does. If that is a hub's name (XLM-RoBERTa),
plain open_clip asks the hub for the tower's config unless it is given `text_cfg` with the folder
as `hf_model_name`: it knows paths that are absolute, or relative to the working directory, and an
archive can't know either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from hotclip_server.artifacts.archive import Progress, write_archive
from hotclip_server.artifacts.records import (
    ArtifactFormat,
    ArtifactRecord,
    Origin,
    archive_folder,
)
from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.models.manifest import MANIFEST_FILE, StoredVersion
from hotclip_server.storage.atomic import raise_if_disk_full, require_free_space

OVERHEAD_BYTES = 1 << 20
"""Of an archive, beyond its files: headers, padding."""


class Folders(Protocol):
    """Stored versions; `VersionStore` is one."""

    def folder(self, version_id: str) -> Path:
        """Where a version lies, in open_clip's local-dir layout. Raises NotFound."""


class OnnxWriter(Protocol):
    """Makes graphs; `OnnxFiles` is one."""

    def write(self, version_id: str, out: Path) -> Mapping[str, Path]:
        """What an ONNX artifact has beside the version's own files, by name, in `out`.

        Raises:
            FailedPrecondition: a tower can't be exported; reason EXPORT_UNSUPPORTED.
            Unavailable: it could not be exported now.
        """


WriteDelta = Callable[[StoredVersion, StoredVersion, Path], Mapping[str, Path]]
"""Writes what differs from the first to the second into a folder; gives the files by name.
Raises FailedPrecondition with reason ARCHITECTURES_DIFFER."""


class Exporter:
    """Makes archives of versions. Blocks; any thread.

    Args:
        onnx: Makes graphs.
        write_delta: Makes the files of a delta.
        min_free_disk_bytes: Must stay free.
    """

    def __init__(
        self,
        versions: Folders,
        artifacts: ArtifactStore,
        onnx: OnnxWriter,
        write_delta: WriteDelta,
        *,
        min_free_disk_bytes: int = 0,
    ) -> None:
        self._onnx = onnx
        self._write_delta = write_delta
        self._versions = versions
        self._artifacts = artifacts
        self._min_free = min_free_disk_bytes

    def export(
        self, format_: ArtifactFormat, origin: Origin, progress: Progress = lambda _: None
    ) -> ArtifactRecord:
        """Writes an archive, unless the same one is there and whole.

        Args:
            progress: Told of each part that was written; may raise to end it.

        Raises:
            NotFound: no such version.
            DataLoss: the files of the version are damaged.
            ResourceExhausted: the disk is full; reason DISK_FULL.
            FailedPrecondition, Unavailable: what `OnnxWriter` and `WriteDelta` raise.
        """
        known = self._artifacts.find_export(format_, origin)
        if known is not None:
            return known
        try:
            with self._artifacts.scratch() as scratch:
                files = self._files(format_, origin, scratch)
                size = sum(path.stat().st_size for path in files.values())
                require_free_space(scratch, size + OVERHEAD_BYTES, floor=self._min_free)
                archive = scratch / "archive.tar"
                folder = archive_folder(format_, origin)
                sha256 = write_archive(archive, folder, files, progress)
                return self._artifacts.add(archive, sha256, format_, origin)
        except OSError as error:
            raise_if_disk_full(error)
            raise

    def _files(self, format_: ArtifactFormat, origin: Origin, scratch: Path) -> dict[str, Path]:
        """What goes into the archive, by name; made files lie in `scratch`."""
        version = StoredVersion.read(self._versions.folder(origin.version))
        version.verify()
        if format_ is ArtifactFormat.DELTA:
            base = StoredVersion.read(self._versions.folder(origin.base_version))
            base.verify()
            return dict(self._write_delta(base, version, scratch))
        files = version_files(version)
        if format_ is ArtifactFormat.ONNX:
            files.update(self._onnx.write(origin.version, scratch))
        return files


def version_files(version: StoredVersion) -> dict[str, Path]:
    """All of a version, the manifest included, by name."""
    names = [*version.files, MANIFEST_FILE]
    return {name: version.folder / name for name in names}
