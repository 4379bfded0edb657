"""Where weights come from: the built-in model, open_clip's names, a hub, a local folder.

Nothing is unpickled: only safetensors files are read, whoever offers something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from open_clip.factory import load_checkpoint
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors import SafetensorError
from torch import nn

from hotclip_server import encoding
from hotclip_server.encoding.architecture import (
    CONFIG_FILE,
    HF_CONFIG_FILE,
    OpenClipConfig,
    build_model,
    config_of,
)
from hotclip_server.encoding.tokenizer import copy_tokenizer, tokenizer_files
from hotclip_server.encoding.weights import check_weights, fp32_bytes
from hotclip_server.errors import FailedPrecondition, InvalidArgument, NotFound
from hotclip_server.models.foreign import check_sizes, check_sizes_of, told_architecture
from hotclip_server.models.hub import hub_errors, write_hf_config

WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
)
RANDOM_SEED = 0
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a source was resolved to."""

    architecture: str
    """Name for people."""
    name: str
    """What open_clip's `get_tokenizer` takes."""
    config: OpenClipConfig
    weights: Path | None
    """A safetensors file; None for random weights."""
    hf_config: Path | None
    """Folder with the config of the text tower; None asks the hub if there is need."""
    tokenizer: Path | None = None
    """Folder of a tokenizer with settings that are known to be right: `transformers`, which takes
    half a second to import, need not read it. None: open_clip's."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A model in fp32 on the CPU and its final config."""

    model: nn.Module
    config: OpenClipConfig
    architecture: str
    """Name for people."""


class SourceReader:
    """Reads sources; see `VersionLoader.import_source` for the errors.

    Args:
        models_dir: Holds the folders that `local:<name>` names; None if there are none.
        allow_random_weights: Whether `arch::` may make a model of random weights.
        require_memory: Told the size of weights in fp32, in bytes, and what they are of, before
            they are read; raises if there is no room for what is made of them.
    """

    def __init__(
        self,
        models_dir: Path | None,
        *,
        allow_random_weights: bool,
        require_memory: Callable[[int, str], None],
    ) -> None:
        self._models_dir = models_dir
        self._allow_random_weights = allow_random_weights
        self._require_memory = require_memory

    def read(self, source: str, staging: Path, unpacked: Path | None = None) -> Imported:
        """Builds the model that `source` names.

        Args:
            staging: An empty folder; receives tokenizer files and `config.json`.
            unpacked: The files of an artifact that `source` names.
        """
        origin, tokenizer = self._gather(source, staging, unpacked)
        if origin.tokenizer is not None:
            copy_tokenizer(origin.tokenizer, staging)
        else:
            tokenizer_files(tokenizer, origin.config, staging)
        if origin.weights is not None:
            self._require_memory(fp32_bytes(origin.weights), "the source")
        if origin.weights is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(RANDOM_SEED)
                model = build_model(origin.config, staging, initialise=True)
        else:
            model = build_model(origin.config, staging)
            if unpacked:
                check_weights(model, origin.weights)
            _load(model, origin.weights)
        return Imported(
            model=model,
            config=config_of(model, origin.config.model),
            architecture=origin.architecture,
        )

    def fetch(self, source: str) -> None:
        """Brings what a hub has of `source` into its cache, where `read` finds it."""
        if source.startswith("hf-hub:") or "::" in source:
            with TemporaryDirectory(prefix="hotclip-fetch-") as folder:
                self._gather(source, Path(folder), None)

    def _gather(self, source: str, staging: Path, unpacked: Path | None) -> tuple[Origin, Any]:
        """All that may have to be downloaded: where it lies, and the tokenizer of open_clip, unless
        there is one that can be copied."""
        with hub_errors(source):
            origin = _artifact(unpacked) if unpacked else self._resolve(source)
            if origin.config.hf_text_model:
                write_hf_config(origin.config.hf_text_model, origin.hf_config, staging)
            tokenizer = None if origin.tokenizer else open_clip.get_tokenizer(origin.name)
            return origin, tokenizer

    def _resolve(self, source: str) -> Origin:
        if source.startswith("builtin:"):
            folder = _builtin(source.removeprefix("builtin:"))
            return replace(_folder(folder, source), tokenizer=folder)
        if source.startswith("local:"):
            return _folder(self._local(source.removeprefix("local:")), source)
        if source.startswith("hf-hub:"):
            return _hub(source.removeprefix("hf-hub:"))
        architecture, separator, tag = source.partition("::")
        if not separator:
            raise _invalid(
                source,
                "is not builtin:<name>, <architecture>::<tag>, hf-hub:<org>/<repo> or local:<name>",
            )
        if architecture not in open_clip.list_models():
            raise NotFound(f"open_clip has no architecture {architecture!r}")
        if not tag and not self._allow_random_weights:
            raise _invalid(source, "names no weights, and this server does not make random ones")
        return _named(architecture, tag)

    def _local(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or ".." in name:
            raise _invalid(f"local:{name}", "must be the plain name of a folder")
        if self._models_dir is None:
            raise NotFound("this server has no folder of local models")
        root = self._models_dir.resolve()
        folder = (root / name).resolve()
        if not folder.is_dir() or not folder.is_relative_to(root):
            raise NotFound(f"no local model {name!r}")
        return folder


def _builtin(name: str) -> Path:
    folder = Path(encoding.__path__[0], "builtin", name)
    if not _NAME.fullmatch(name) or ".." in name or not (folder / CONFIG_FILE).is_file():
        raise NotFound(f"no built-in model {name!r}")
    return folder


def _folder(folder: Path, source: str) -> Origin:
    if not (folder / CONFIG_FILE).is_file():
        raise _unfit(f"{source} has no {CONFIG_FILE}")
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise _unfit(f"{source} has no {WEIGHT_FILES[0]}; pickled checkpoints are not read")
    check_sizes(folder)
    return Origin(
        architecture=source.partition(":")[2],
        name=f"local-dir:{folder}",
        config=OpenClipConfig.from_json((folder / CONFIG_FILE).read_bytes()),
        weights=weights,
        hf_config=folder if (folder / HF_CONFIG_FILE).is_file() else None,
    )


def _artifact(folder: Path) -> Origin:
    """What came from somewhere else: nothing is fetched for it."""
    origin = _folder(folder, "the artifact")
    if origin.config.hf_text_model and origin.hf_config is None:
        raise _unfit(f"the artifact has no {HF_CONFIG_FILE} of its text tower")
    return replace(origin, architecture=told_architecture(folder))


def _hub(repo: str) -> Origin:
    if not _REPO.fullmatch(repo):
        raise _invalid(f"hf-hub:{repo}", "must be hf-hub:<org>/<repo>")
    config = Path(hf_hub_download(repo, CONFIG_FILE))
    check_sizes_of(config)
    return Origin(
        architecture=repo,
        name=f"hf-hub:{repo}",
        config=OpenClipConfig.from_json(config.read_bytes()),
        weights=_download(repo, WEIGHT_FILES),
        hf_config=None,
    )


def _named(architecture: str, tag: str) -> Origin:
    model_cfg = open_clip.get_model_config(architecture)
    preprocess: Mapping[str, Any] = asdict(PreprocessCfg())
    weights = None
    if tag:
        described = open_clip.get_pretrained_cfg(architecture, tag)
        if not described:
            known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
            raise NotFound(f"{architecture} has no pretrained tag {tag!r}; it has: {known}")
        preprocess = merge_preprocess_dict(dict(preprocess), described)
        repo, _, file = described.get("hf_hub", "").rpartition("/")
        if not repo:
            raise _unfit(f"{architecture}::{tag} is published only as a pickled checkpoint")
        names: tuple[str, ...] = (f"{file.rpartition('.')[0]}.safetensors",) if file else ()
        if not file or file == "open_clip_pytorch_model.bin":
            names = WEIGHT_FILES[:2]
        weights = _download(repo, names)
    return Origin(
        architecture=architecture,
        name=architecture,
        config=OpenClipConfig(model=model_cfg, preprocess=preprocess),
        weights=weights,
        hf_config=None,
    )


def _download(repo: str, names: tuple[str, ...]) -> Path:
    """The first of the files that the hub has."""
    for name in names:
        try:
            return Path(hf_hub_download(repo, name))
        except LocalEntryNotFoundError:  # no answer from the hub; it is an EntryNotFoundError too
            raise
        except EntryNotFoundError:
            continue
    raise _unfit(f"{repo} has no {names[0]}; pickled checkpoints are not read")


def _load(model: nn.Module, weights: Path) -> None:
    try:
        load_checkpoint(model, str(weights), strict=True)  # converts other layouts, too
    except (SafetensorError, RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise _unfit(f"{weights.name} does not fit its config: {error}") from error


def _invalid(source: str, problem: str) -> InvalidArgument:
    return InvalidArgument.field("source", f"{source!r} {problem}", reason="SOURCE_INVALID")


def _unfit(problem: str) -> FailedPrecondition:
    return FailedPrecondition(problem, reason="VERSION_UNFIT")
