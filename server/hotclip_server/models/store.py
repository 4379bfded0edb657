"""Versions on disk: one folder each, named by its content, whole or absent.

    <root>/<version id>/
        open_clip_config.json         {"model_cfg", "preprocess_cfg"}
        open_clip_model.safetensors   fp32
        tokenizer files, and config.json of a Hugging Face text tower, where there are any
        hotclip_version.json          the manifest, with the sha256 of each file
        hotclip_unrecorded            while the database has no row of it: see unrecorded.py

The folder is open_clip's local-dir layout, so that `open_clip.create_model("local-dir:...")`
reads it too.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Protocol

from torch import nn

from hotclip_server.encoding.architecture import CONFIG_FILE, OpenClipConfig, build_model
from hotclip_server.encoding.byte_pairs import BytePairTokenizer
from hotclip_server.encoding.fingerprint import encoder_id
from hotclip_server.encoding.image import ImageLimits
from hotclip_server.encoding.open_clip_encoder import OpenClipEncoder
from hotclip_server.encoding.protocol import EncoderSpec, Tower
from hotclip_server.encoding.spaces import space_id
from hotclip_server.encoding.tokenizer import TextTokenizer, load_tokenizer, tokenizer_inputs
from hotclip_server.encoding.weights import master_weights, read_weights, write_tensors
from hotclip_server.errors import DataLoss, FailedPrecondition, NotFound
from hotclip_server.models.delta import DELTA_FILE, DeltaInfo, apply_delta
from hotclip_server.models.manifest import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    StoredVersion,
    is_version_id,
    write_manifest,
)
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.models.sources import SourceReader
from hotclip_server.models.unrecorded import lost, mark, unmark
from hotclip_server.pace import Pause, never
from hotclip_server.storage.atomic import (
    new_folder,
    publish_folder,
    raise_if_disk_full,
    remove_leftovers,
    sha256_file,
)

_log = logging.getLogger(__name__)


def _fits(size_bytes: int, what: str) -> None:
    """Nobody looks at the memory."""


class Artifacts(Protocol):
    """Archives of models; `ArtifactStore` is one. Blocks."""

    def unpacked(self, artifact: str) -> AbstractContextManager[Path]:
        """A folder with the files of one, removed at the end. Raises NotFound, DataLoss."""


class VersionStore:
    """Implements `VersionLoader`. Every method blocks and may be called on any thread.

    Args:
        root: Folder of the versions; made when the first is stored.
        models_dir: Holds the folders that `local:<name>` names.
        allow_random_weights: Whether `<architecture>::` makes a model of random weights.
        artifacts: Holds what `artifact:<id>` names; None if there are none.
        image_limits: Of the encoders that it loads.
        pause: Called between pieces of all that it reads, checks and hashes.
        require_memory: Told the size of weights in fp32, in bytes, and what they are of, before
            they are read to make a version of them.
    """

    def __init__(
        self,
        root: Path,
        *,
        models_dir: Path | None = None,
        allow_random_weights: bool = False,
        artifacts: Artifacts | None = None,
        image_limits: ImageLimits | None = None,
        pause: Pause = never,
        require_memory: Callable[[int, str], None] = _fits,
    ) -> None:
        self._root = root
        self._artifacts = artifacts
        self._sources = SourceReader(
            models_dir, allow_random_weights=allow_random_weights, require_memory=require_memory
        )
        self._require_memory = require_memory
        self._image_limits = image_limits or ImageLimits()
        self._pause = pause
        self._byte_pairs: dict[str, BytePairTokenizer] = {}
        """By what they are made from: reading the merges takes as long as a small model."""

    def remove_leftovers(self) -> int:
        """Removes what a crash left; call it before anything is stored."""
        return remove_leftovers(self._root)

    def folder(self, version_id: str) -> Path:
        """Where a version lies, in open_clip's local-dir layout; read-only.

        Raises:
            NotFound: no such version.
        """
        folder = self._root / version_id
        if not is_version_id(version_id) or not (folder / MANIFEST_FILE).is_file():
            raise NotFound(f"no version {version_id!r}")
        return folder

    def save(
        self,
        model: nn.Module,
        config: OpenClipConfig,
        files: Mapping[str, Path],
        *,
        parent: str,
        source: str,
        architecture: str = "",
    ) -> VersionManifest:
        """Stores a model in fp32; storing the same content again returns the same version.

        Args:
            model: An open_clip model built from `config`, in any precision on any device;
                nothing may change it meanwhile.
            files: Tokenizer files and `config.json`, by name.
            architecture: Name for people; taken from the config if empty.

        Raises:
            FailedPrecondition: a weight is not finite; reason VERSION_UNFIT.
            ResourceExhausted: the disk is full; reason DISK_FULL.
        """
        state = master_weights(model, self._pause)
        folder = new_folder(self._root)
        try:
            for name, path in files.items():
                shutil.copyfile(path, folder / name)
            tokenizer = {name: sha256_file(folder / name) for name in sorted(files)}
            (folder / CONFIG_FILE).write_bytes(config.to_json())
            write_tensors(state, folder / WEIGHTS_FILE)
            inputs = tokenizer_inputs(tokenizer, config), dict(config.preprocess)
            text, vision = (
                encoder_id(tower, state, config.model, of_tower, self._pause)
                for tower, of_tower in zip((Tower.TEXT, Tower.VISION), inputs, strict=True)
            )
            spec = EncoderSpec(
                architecture=architecture or "custom",
                dim=int(config.model["embed_dim"]),
                image_size=_square(config),
                context_length=config.context_length,
                text_encoder_id=text,
                vision_encoder_id=vision,
                space_id=space_id(text, vision),
            )
            version = write_manifest(
                folder, spec=spec, parent=parent, source=source, pause=self._pause
            )
            return self._publish(folder, version)
        except OSError as error:
            raise_if_disk_full(error)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # gone already if it was published

    def save_trained(self, model: nn.Module, *, base: str, source: str) -> VersionManifest:
        """Stores new weights of the version `base`, with its config and its tokenizer.

        Raises:
            NotFound: no version `base`.
            DataLoss: the files of `base` are damaged.
            FailedPrecondition: a weight is not finite; reason VERSION_UNFIT.
            ResourceExhausted: the disk is full; reason DISK_FULL.
        """
        version = self._verified(base, skip=WEIGHTS_FILE)
        return self.save(
            model,
            self._config(version),
            version.extra_files(),
            parent=base,
            source=source,
            architecture=version.manifest.spec.architecture,
        )

    def load(self, version_id: str, *, device: str = "cpu") -> OpenClipEncoder:
        """Loads a version into memory of its own, run by plain open_clip in fp32.

        Nothing is fetched from anywhere.

        Args:
            device: E.g. "cpu" or "cuda:0".

        Raises:
            NotFound: no such version.
            DataLoss: a checksum does not match.
            FailedPrecondition: this installation cannot build it; reason VERSION_UNFIT.
            InvalidArgument: no such device.
        """
        version = self._verified(version_id)
        config = self._config(version)
        model = build_model(config, version.folder, pause=self._pause)
        read_weights(model, version.folder / WEIGHTS_FILE, self._pause)
        return OpenClipEncoder(
            model,
            self._tokenizer(config, version.folder),
            version.manifest.spec,
            shape=config.shape_id,
            device=device,
            limits=self._image_limits,
            folder=version.folder,
        )

    def fetch(self, source: str) -> None:
        """Downloads what `source` names, if it names a hub; errors as `import_source`."""
        self._sources.fetch(source)

    def require_memory(self, *versions: str) -> None:
        """Refuses to hold the weights of so many stored versions at once, before any are read.

        Raises:
            NotFound: no such version.
            ResourceExhausted: they do not fit; reason OUT_OF_MEMORY.
        """
        size_bytes = sum(self.read_manifest(version).size_bytes for version in versions)
        self._require_memory(size_bytes, "a version made of others")

    def import_source(self, source: str) -> VersionManifest:
        """Stores the weights that `source` names; the same weights give the same version.

        Args:
            source: "builtin:mini", "<architecture>::<tag>", "hf-hub:<org>/<repo>",
                "local:<name>", "artifact:<id>"; "<architecture>::" for random weights where
                allowed.

        Raises:
            InvalidArgument: not a source; reason SOURCE_INVALID.
            NotFound: no such architecture, tag, folder or repository.
            FailedPrecondition: its files do not make a model; reason VERSION_UNFIT. Or they are
                the difference to a version that is not here; reason BASE_VERSION_MISSING.
            Unavailable: the hub does not answer.
            ResourceExhausted: the disk is full; reason DISK_FULL. Or `require_memory` says so;
                reason OUT_OF_MEMORY.
        """
        with ExitStack() as stack:
            kind, _, name = source.partition(":")
            unpacked = self._unpacked(name, stack) if kind == "artifact" else None
            if unpacked is not None and (unpacked / DELTA_FILE).is_file():
                return self._import_delta(unpacked, source)
            temporary = tempfile.TemporaryDirectory(prefix="hotclip-import-")
            staging = stack.enter_context(temporary)
            imported = self._sources.read(source, Path(staging), unpacked)
            return self.save(
                imported.model,
                imported.config,
                {path.name: path for path in sorted(Path(staging).iterdir())},
                parent="",
                source=source,
                architecture=imported.architecture,
            )

    def read_manifest(self, version_id: str) -> VersionManifest:
        """What a stored version is.

        Raises:
            NotFound: no such version.
            DataLoss: the manifest is damaged.
        """
        return StoredVersion.read(self.folder(version_id)).manifest

    def delete(self, version_id: str) -> None:
        """Removes the files of a version; does nothing if there are none."""
        if not is_version_id(version_id) or not (self._root / version_id).is_dir():
            return
        doomed = new_folder(self._root)
        (self._root / version_id).rename(doomed / version_id)
        shutil.rmtree(doomed)

    def note_recorded(self, version_id: str, *, recorded: bool) -> None:
        """The database has a row of a version, or is about to lose it; no files, no mark."""
        folder = self._root / version_id
        if is_version_id(version_id) and folder.is_dir():
            (unmark if recorded else mark)(folder)

    def remove_unrecorded(self, recorded: Collection[str]) -> None:
        """Removes what a crash left of versions without a row, at the start."""
        for version_id in lost(self._root, recorded):
            _log.info("version %s was never recorded, or is deleted: its files go", version_id)
            self.delete(version_id)

    def _import_delta(self, unpacked: Path, source: str) -> VersionManifest:
        base = DeltaInfo.read(unpacked).base_version
        try:
            self.require_memory(base)
            model = self.load(base).model
        except NotFound as error:
            raise FailedPrecondition(
                f"the artifact is the difference to version {base}, which is not here",
                reason="BASE_VERSION_MISSING",
                metadata={"base_version": base},
            ) from error
        apply_delta(model.state_dict(), unpacked)
        return self.save_trained(model, base=base, source=source)

    def _unpacked(self, artifact: str, stack: ExitStack) -> Path:
        if self._artifacts is None:
            raise NotFound("this server has no artifacts")
        return stack.enter_context(self._artifacts.unpacked(artifact))

    def _publish(self, folder: Path, version: StoredVersion) -> VersionManifest:
        final = self._root / version.manifest.id
        if final.exists():
            try:
                return self._verified(version.manifest.id).manifest
            except (DataLoss, NotFound):  # the good copy takes the damaged one's place
                self.delete(version.manifest.id)
        mark(folder)
        publish_folder(folder, final)
        return StoredVersion.read(final).manifest

    def _verified(self, version_id: str, *, skip: str = "") -> StoredVersion:
        version = StoredVersion.read(self.folder(version_id))
        version.verify(skip=skip, pause=self._pause)
        return version

    def _tokenizer(self, config: OpenClipConfig, folder: Path) -> TextTokenizer:
        """Versions share open_clip's own, which depends on the config alone."""
        key = json.dumps(config.text, sort_keys=True)
        if (known := self._byte_pairs.get(key)) is not None:
            return known
        made = load_tokenizer(config, folder)
        if isinstance(made, BytePairTokenizer):
            self._byte_pairs[key] = made
        return made

    def _config(self, version: StoredVersion) -> OpenClipConfig:
        return OpenClipConfig.from_json((version.folder / CONFIG_FILE).read_bytes())


def _square(config: OpenClipConfig) -> int:
    size = config.preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise FailedPrecondition(
            f"the model takes images of {height} x {width}; only square ones are served",
            reason="VERSION_UNFIT",
        )
    return int(height)
