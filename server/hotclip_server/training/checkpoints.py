"""States of a run on the disk, whole or absent, and the weights that it may come back to.

    <folder>/
        state-000007/state.safetensors    weights, their average, moments of the optimizer,
                                          mined negatives
                     manifest.json        where the run stood, sha256 of the file and of itself
        weights-000003/weights.safetensors, manifest.json

States are numbered in the order in which they were written; the newest whole one counts. Of
states the newest `keep` stay, of weights those that a kept state, or the run, names.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hotclip_server.encoding.weights import write_tensors
from hotclip_server.errors import DataLoss
from hotclip_server.storage.atomic import (
    new_folder,
    publish_folder,
    raise_if_disk_full,
    remove_leftovers,
    sha256_file,
)
from hotclip_server.training.progress import Progress, Snapshot

log = logging.getLogger(__name__)

STATE, WEIGHTS, MANIFEST = "state", "weights", "manifest.json"
_PARTS = ("weights", "average", "optimizer", "mined")
LIBRARIES = ("hotclip", "torch", "open_clip_torch", "numpy")
"""Whose versions decide the last bit of a result; hotclip itself for the order of its sums."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A state that was read."""

    snapshot: Snapshot
    notes: Mapping[str, Any]
    """What was given to `save`."""
    threads: int
    """Of torch, when it was written."""
    libraries: Mapping[str, str]


class Checkpoints:
    """Of one run; only one thread may use it.

    Args:
        folder: Made when something is written.
        keep: How many states stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = max(1, keep)
        self._damaged: set[str] = set()
        remove_leftovers(folder)

    @property
    def size_bytes(self) -> int:
        """What the files of its states and weights take on the disk."""
        folders = [*self._folders(STATE), *self._folders(WEIGHTS)]
        return sum(file.stat().st_size for folder in folders for file in folder.iterdir())

    def save(self, snapshot: Snapshot, notes: Mapping[str, Any], used: Collection[str]) -> int:
        """Writes a state, then removes what is no longer needed.

        Args:
            notes: JSON of the caller's own.
            used: Names that `save_weights` gave and that the notes speak of.

        Returns:
            Bytes of its file.

        Raises:
            ResourceExhausted: the disk is full; reason DISK_FULL. What was there is there.
        """
        tensors = {
            f"{part}/{name}": tensor
            for part in _PARTS
            for name, tensor in getattr(snapshot, part).items()
        }
        manifest = {
            "progress": snapshot.progress.to_json(),
            "notes": dict(notes),
            "uses": sorted(used),
            "threads": torch.get_num_threads(),
            "libraries": library_versions(),
        }
        _, size = self._write(STATE, tensors, manifest)
        self._remove_old(used)
        return size

    def load(self) -> Stored | None:
        """The newest state that is whole; None if there is none."""
        for folder in reversed(self._folders(STATE)):
            try:
                tensors, manifest = _read(folder, STATE)
            except DataLoss as error:
                log.warning("a checkpoint is left out: %s", error.message)
                self._damaged.add(folder.name)
                continue
            parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
            for key, tensor in tensors.items():
                part, _, name = key.partition("/")
                parts[part][name] = tensor
            progress = Progress.from_json(manifest["progress"])
            return Stored(
                snapshot=Snapshot(progress=progress, **parts),
                notes=manifest["notes"],
                threads=manifest["threads"],
                libraries=manifest["libraries"],
            )
        return None

    def save_weights(self, tensors: Mapping[str, Tensor]) -> str:
        """Writes weights to come back to; the name to read them by. Raises as `save`."""
        return self._write(WEIGHTS, tensors, {})[0]

    def load_weights(self, name: str) -> dict[str, Tensor]:
        """On the CPU. Raises DataLoss."""
        return _read(self._folder / name, WEIGHTS)[0]

    def _write(
        self, kind: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]
    ) -> tuple[str, int]:
        present = self._folders(kind)
        number = int(present[-1].name.rpartition("-")[2]) + 1 if present else 1
        temporary = new_folder(self._folder)
        try:
            file = temporary / f"{kind}.safetensors"
            write_tensors(
                {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file
            )
            content = {**manifest, "sha256": sha256_file(file)}
            told = {"sha256": _digest(content), "content": content}
            (temporary / MANIFEST).write_text(json.dumps(told), encoding="utf-8")
            size = file.stat().st_size
            final = self._folder / f"{kind}-{number:06}"
            publish_folder(temporary, final)
        except OSError as error:
            raise_if_disk_full(error)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # gone already if it was published
        return final.name, size

    def _remove_old(self, used: Collection[str]) -> None:
        states = self._folders(STATE)
        whole = [folder for folder in states if folder.name not in self._damaged]
        kept = whole[-self._keep :]
        needed = set(used).union(*map(_uses, kept))
        unused = [folder for folder in self._folders(WEIGHTS) if folder.name not in needed]
        for folder in [*(folder for folder in states if folder not in kept), *unused]:
            shutil.rmtree(folder, ignore_errors=True)

    def _folders(self, kind: str) -> list[Path]:
        return sorted(self._folder.glob(f"{kind}-*"))


def _uses(state: Path) -> set[str]:
    """Weights that a state names; none if that can't be read, for then the state can't either."""
    try:
        return set(_read_manifest(state)["uses"])
    except DataLoss as error:
        log.warning("a checkpoint is left out: %s", error.message)
        return set()


def library_versions() -> dict[str, str]:
    """Of those that decide the last bit; what runs uninstalled has none."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _read(folder: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    file, manifest = folder / f"{kind}.safetensors", _read_manifest(folder)
    try:
        if sha256_file(file) != manifest["sha256"]:
            raise DataLoss(f"{folder.name} is damaged", reason="CHECKPOINT_DAMAGED")
        return load_file(file), manifest
    except (OSError, SafetensorError) as error:
        raise DataLoss(f"{folder.name}: {error}", reason="CHECKPOINT_DAMAGED") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        content: dict[str, Any] = told["content"]
        whole = _digest(content) == told["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{folder.name}: {MANIFEST}: {error!r}"
        raise DataLoss(problem, reason="CHECKPOINT_DAMAGED") from error
    if not whole:
        raise DataLoss(f"{folder.name}: {MANIFEST} is damaged", reason="CHECKPOINT_DAMAGED")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    """sha256 of JSON, which survives being written and read, hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
