"""What plain open_clip in fp32 gave for the probes of a version, when it was first loaded.

A version that is staged again is compared with it, whatever engine runs it by then and whatever
has changed on the machine, without running plain open_clip again.

    <folder>/<version>.<inputs>.golden    sha256 of what follows, 32 bytes; then safetensors:
                                          float32 (n, dim) of each tower by name
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from safetensors.numpy import load, save

from hotclip_server.encoding.protocol import Tower
from hotclip_server.models.probes import Probes, Rows
from hotclip_server.storage.atomic import write_atomically

_log = logging.getLogger(__name__)

_DIGEST_BYTES = 32


class GoldenProbes:
    """Features by version and prepared inputs. Every method blocks.

    Args:
        folder: Made when the first are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, version_id: str, inputs: Probes) -> Rows | None:
        """None if there are none for these inputs, or they are damaged: a byte that has changed
        on the disk must not make a good version unfit."""
        path = self._path(version_id, inputs)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, kept = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(kept).digest() != digest:
            _log.warning("%s is damaged; it is made anew", path.name)
            return None
        stored = load(kept)
        return {tower: stored[tower.value] for tower in inputs}

    def write(self, version_id: str, inputs: Probes, rows: Rows) -> None:
        """Keeps them.

        Raises:
            ResourceExhausted: the disk is full; reason DISK_FULL.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        content = save({tower.value: block for tower, block in rows.items()})
        write_atomically(self._path(version_id, inputs), hashlib.sha256(content).digest() + content)

    def forget(self, version_id: str) -> None:
        """The version is gone."""
        for path in self._folder.glob(f"{version_id}.*"):
            path.unlink(missing_ok=True)

    def _path(self, version_id: str, inputs: Probes) -> Path:
        digest = hashlib.sha256()
        for tower in Tower:
            for probe in inputs.get(tower, ()):
                digest.update(probe.array.tobytes())
        return self._folder / f"{version_id}.{digest.hexdigest()[:16]}.golden"
