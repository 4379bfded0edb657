"""Graphs of towers on disk: one an architecture and tower, without weights.

    <folder>/<key>.onnx     sha256 of what follows (32 bytes), then the graph

The key names the architecture and the versions of the libraries that export it. A graph of
some hundred kilobytes serves every version of its architecture, so a fine-tuned one starts
without an export, and there is nothing to delete with a version.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from hotclip_server.encoding.architecture import CONFIG_FILE, HF_CONFIG_FILE
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.protocol import Tower
from hotclip_server.storage.atomic import remove_leftovers, write_atomically

FORMAT = 1
"""Raised when another graph is exported for the same model."""
MOST_GRAPHS = 64
"""The oldest go first."""
EXPORT_S = 900.0
"""Seconds that an export may take; minutes for the largest models on a busy machine."""
LIBRARIES = ("torch", "open_clip_torch", "timm", "transformers", "onnx", "onnx-ir", "onnxscript")
OUT_OF_MEMORY = ("MemoryError", "can't allocate memory", "Cannot allocate memory")
"""What the last line of an export says that had too little of it."""
PREFIX = "model."
"""In a graph, of a weight's name; then comes its name in the model's `state_dict`."""
_DIGEST_BYTES = 32

_log = logging.getLogger(__name__)


class ExportEnded(Exception):
    """An export was ended from outside or had too little time or memory: another may do."""


class ExportGraph(Protocol):
    """Makes the serialised graph of a stored version's tower; blocks. Raises EngineUnfit and
    ExportEnded."""

    def __call__(self, version_folder: Path, tower: Tower, /) -> bytes: ...


class OnnxGraphs:
    """Graphs by architecture and tower; thread-safe, blocks.

    Args:
        folder: Made with the first graph; nothing else writes there.
    """

    def __init__(self, folder: Path, export: ExportGraph) -> None:
        self._folder, self._export = folder, export
        self._lock = threading.Lock()

    def graph(self, version_folder: Path, tower: Tower) -> bytes:
        """The serialised graph of a stored version's tower; exported if it is not there.

        Raises:
            EngineUnfit: it can't be exported.
            ExportEnded: it could not be exported now.
        """
        path = self._folder / f"{_key(version_folder, tower)}.onnx"
        with self._lock:
            found = _read(path)
            if found is None:
                found = self._export(version_folder, tower)
                self._folder.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self._folder)
                write_atomically(path, hashlib.sha256(found).digest() + found)
                self._forget_oldest()
        return found

    def _forget_oldest(self) -> None:
        graphs = sorted(self._folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime)
        for path in graphs[:-MOST_GRAPHS]:
            path.unlink()


class ExportProcess:
    """Implements `ExportGraph` in a process of its own: see `onnx_export`."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def __call__(self, version_folder: Path, tower: Tower, /) -> bytes:
        """See `ExportGraph`."""
        with tempfile.TemporaryDirectory(prefix="hotclip-onnx-") as scratch:
            out = Path(scratch, "graph.onnx")
            command = [sys.executable, "-m", "hotclip_server.encoding.engines.onnx_export"]
            command += [str(version_folder), tower.value, str(out), str(os.getpid())]
            self._run(command)
            if not out.is_file():
                raise EngineUnfit("can't be exported: the exporter wrote nothing")
            return out.read_bytes()

    def stop(self) -> None:
        """Ends an export that runs; none begins any more."""
        self._stopped = True
        child = self._child
        if child is not None:
            child.kill()

    def _run(self, command: Sequence[str]) -> None:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as child:
            self._child = child
            if self._stopped:  # asked for before there was a child to end
                child.kill()
            try:
                _, errors = child.communicate(timeout=EXPORT_S)
            except subprocess.TimeoutExpired as error:
                child.kill()
                raise ExportEnded(f"exporting took more than {EXPORT_S:.0f} s") from error
            finally:
                self._child = None
        if child.returncode != 0:
            said = errors.decode(errors="replace").strip()
            _log.debug("%s", said)
            last = said.splitlines()[-1] if said else "no message"
            if child.returncode < 0 or any(sign in last for sign in OUT_OF_MEMORY):
                raise ExportEnded(f"exporting ended (status {child.returncode}): {last}")
            raise EngineUnfit(f"can't be exported (status {child.returncode}): {last}")


def _key(version_folder: Path, tower: Tower) -> str:
    """32 hex digits of all that a graph depends on."""
    digest = hashlib.sha256(f"{FORMAT} {tower.value}".encode())
    for name in (CONFIG_FILE, HF_CONFIG_FILE):
        path = version_folder / name
        digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    digest.update(" ".join(f"{name} {version(name)}" for name in LIBRARIES).encode())
    return digest.hexdigest()[:32]


def _read(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    content = path.read_bytes()
    found = content[_DIGEST_BYTES:]
    if hashlib.sha256(found).digest() != content[:_DIGEST_BYTES]:
        _log.warning("the graph %s is damaged and is exported again", path.name)
        return None
    return found
