"""`hotclip_version.json`: what a stored version is and the checksum of each of its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hotclip_server.encoding.protocol import EncoderSpec
from hotclip_server.errors import DataLoss
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.pace import Pause, never
from hotclip_server.storage.atomic import sha256_file

MANIFEST_FILE = "hotclip_version.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
_OWN_FILES = {"open_clip_config.json", WEIGHTS_FILE}
_FORMAT = 1
_VERSION_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class StoredVersion:
    """A version's folder, its manifest and the sha256 of each file by name."""

    folder: Path
    manifest: VersionManifest
    files: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> StoredVersion:
        """Reads the manifest; not the files.

        Raises:
            DataLoss: it is damaged, or the folder's name is not its content's.
        """
        try:
            content = json.loads((folder / MANIFEST_FILE).read_bytes())
            version = cls(
                folder=folder,
                manifest=VersionManifest(
                    id=content["id"],
                    spec=EncoderSpec(**content["spec"]),
                    parent=content["parent"],
                    source=content["source"],
                    size_bytes=content["size_bytes"],
                    sha256=content["files"][WEIGHTS_FILE],
                ),
                files=content["files"],
            )
            expected = _content_id(version.files, content["spec"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataLoss(f"{folder.name}: {MANIFEST_FILE} is damaged: {error!r}") from error
        if folder.name != version.manifest.id or expected != version.manifest.id:
            raise DataLoss(f"{folder.name}: {MANIFEST_FILE} does not describe this version")
        return version

    def verify(self, *, skip: str = "", pause: Pause = never) -> None:
        """Compares the checksum of each file, except `skip`.

        Args:
            pause: Called between pieces.

        Raises:
            DataLoss: one differs or is missing.
        """
        for name, expected in self.files.items():
            if name == skip:
                continue
            try:
                found = sha256_file(self.folder / name, pause)
            except OSError as error:
                raise DataLoss(f"{self.folder.name}: {name} cannot be read: {error}") from error
            if found != expected:
                raise DataLoss(f"{self.folder.name}: the checksum of {name} does not match")

    def extra_files(self) -> dict[str, Path]:
        """Tokenizer files and `config.json`, by name."""
        return {name: self.folder / name for name in self.files if name not in _OWN_FILES}


def write_manifest(
    folder: Path, *, spec: EncoderSpec, parent: str, source: str, pause: Pause = never
) -> StoredVersion:
    """Writes the manifest of a folder that holds all its other files."""
    files = {path.name: sha256_file(path, pause) for path in sorted(folder.iterdir())}
    described = asdict(spec)
    version_id = _content_id(files, described)
    size = (folder / WEIGHTS_FILE).stat().st_size
    content = {
        "format": _FORMAT,
        "id": version_id,
        "parent": parent,
        "source": source,
        "size_bytes": size,
        "spec": described,
        "files": files,
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    manifest = VersionManifest(
        id=version_id,
        spec=spec,
        parent=parent,
        source=source,
        size_bytes=size,
        sha256=files[WEIGHTS_FILE],
    )
    return StoredVersion(folder=folder, manifest=manifest, files=files)


def is_version_id(text: str) -> bool:
    """Whether `text` has the form of a version id, and so is no path."""
    return _VERSION_ID.fullmatch(text) is not None


def _content_id(files: Mapping[str, str], spec: Mapping[str, Any]) -> str:
    """16 hex digits; the same content from another source is the same version."""
    encoders = [spec["text_encoder_id"], spec["vision_encoder_id"]]
    content = json.dumps({"files": files, "encoders": encoders}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
