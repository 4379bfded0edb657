"""What the registry knows of versions on disk and of how they are loaded. No torch here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from hotclip_server.encoding.protocol import Encoder, EncoderSpec


@dataclass(frozen=True, kw_only=True)
class VersionManifest:
    """A version as it lies on disk; immutable."""

    id: str
    """Content address: first 16 hex digits of the sha256 of what the version consists of."""
    spec: EncoderSpec
    parent: str
    """Version that it was trained from; empty for a root."""
    source: str
    """What was imported or which job made it, e.g. "builtin:mini" or "job:<id>"."""
    size_bytes: int
    """Bytes of the weights file."""
    sha256: str
    """Of the weights file, hex."""


class VersionLoader(Protocol):
    """Turns names into weights. Every method blocks and may be called on any thread."""

    def fetch(self, source: str) -> None:
        """Brings what `source` names onto this machine if it is elsewhere, which may take as long
        as the network does. Errors as `import_source`."""

    def import_source(self, source: str) -> VersionManifest:
        """Stores the weights that `source` names as a version; the same weights give the same.

        A fresh one is not recorded: see `note_recorded`.

        Raises:
            InvalidArgument: not a source; reason SOURCE_INVALID.
            NotFound: no such architecture, tag, folder or hub id.
            FailedPrecondition: the weights do not fit their config; reason VERSION_UNFIT.
            Unavailable: the hub does not answer.
        """

    def load(self, version_id: str, *, device: str) -> Encoder:
        """Loads a stored version, run by plain open_clip in fp32.

        Args:
            device: E.g. "cpu" or "cuda:0".

        Raises:
            NotFound: no such version.
            DataLoss: a checksum does not match.
        """

    def read_manifest(self, version_id: str) -> VersionManifest:
        """Reads what a stored version is.

        Raises:
            NotFound: no such version.
            DataLoss: the manifest is damaged.
        """

    def delete(self, version_id: str) -> None:
        """Removes the files of a version; does nothing if there are none."""

    def note_recorded(self, version_id: str, *, recorded: bool) -> None:
        """The database has a row of a version, or is about to lose it; no files, no mark."""

    def remove_unrecorded(self, recorded: Collection[str]) -> None:
        """Removes what a crash left of versions without a row, at the start.

        Args:
            recorded: Ids of those that have one.
        """


@dataclass(frozen=True, kw_only=True)
class ArchitectureInfo:
    """An architecture that `VersionLoader.import_source` knows by name."""

    name: str
    pretrained: tuple[str, ...]
    """Tags of published weights."""
    dim: int
    """Elements of a vector."""
    image_size: int
    """Height and width of the model's input in pixels."""
    context_length: int
    """Longest text in tokens."""
