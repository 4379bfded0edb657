"""The config of an open_clip model and the model built from it, with no weights and no network."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hotclip_server.encoding.open_clip_import import complete_open_clip
from hotclip_server.errors import FailedPrecondition
from hotclip_server.pace import Pause, never

CONFIG_FILE = "open_clip_config.json"
HF_CONFIG_FILE = "config.json"
"""Of a Hugging Face text tower; beside the open_clip config."""

_OWN_PAGES_BYTES = 1 << 20
"""Weights of this size have pages of their own."""
_TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "context_length"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class OpenClipConfig:
    """What open_clip calls `model_cfg` and `preprocess_cfg`."""

    model: Mapping[str, Any]
    preprocess: Mapping[str, Any]

    @property
    def text(self) -> Mapping[str, Any]:
        """`text_cfg`."""
        text: Mapping[str, Any] = self.model["text_cfg"]
        return text

    @property
    def vision(self) -> Mapping[str, Any]:
        """`vision_cfg`."""
        vision: Mapping[str, Any] = self.model["vision_cfg"]
        return vision

    @property
    def hf_text_model(self) -> str:
        """Hub id of a Hugging Face text tower; empty if the tower is open_clip's own."""
        return str(self.text.get("hf_model_name") or "")

    @property
    def hf_tokenizer(self) -> str:
        """Hub id of the tokenizer; empty for open_clip's own byte-pair tokenizer."""
        return str(self.text.get("hf_tokenizer_name") or "")

    @property
    def context_length(self) -> int:
        """Longest text in tokens, as open_clip's `get_tokenizer` finds it."""
        return int(self.text.get("context_length", 77))

    @property
    def shape_id(self) -> str:
        """16 hex digits of what decides how fast it runs: all but the weights."""
        return hashlib.sha256(self.to_json()).hexdigest()[:16]

    def to_json(self) -> bytes:
        """The content of `open_clip_config.json`; equal configs give equal bytes."""
        content = {"model_cfg": self.model, "preprocess_cfg": self.preprocess}
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> OpenClipConfig:
        """Reads `open_clip_config.json`.

        Raises:
            FailedPrecondition: not such a file, or it asks for something a config from
                elsewhere may not have; reason VERSION_UNFIT.
        """
        try:
            content = json.loads(data)
            model = content["model_cfg"]
            config = cls(model=model, preprocess=content.get("preprocess_cfg") or {})
            wrong = _problem(config)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FailedPrecondition(
                f"{CONFIG_FILE} is not an open_clip config: {error!r}", reason="VERSION_UNFIT"
            ) from error
        if wrong:
            raise FailedPrecondition(f"{CONFIG_FILE}: {wrong}", reason="VERSION_UNFIT")
        return config


def build_model(
    config: OpenClipConfig, folder: Path, *, initialise: bool = False, pause: Pause = never
) -> nn.Module:
    """Builds the model in fp32 on the CPU, in evaluation mode, as open_clip's factory does.

    Args:
        folder: Where `config.json` of a Hugging Face text tower lies.
        initialise: Draw random weights; otherwise the weights are whatever was in memory.
        pause: Called between the calls of torch that make it, unless they draw.

    Raises:
        FailedPrecondition: open_clip cannot build it; reason VERSION_UNFIT.
    """
    settings = deepcopy(dict(config.model))
    text, vision = settings["text_cfg"], settings["vision_cfg"]
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    if config.hf_text_model:
        text["hf_model_name"] = str(folder)
        text["hf_model_pretrained"] = False
    if vision.get("timm_model_name") or config.hf_text_model:
        complete_open_clip()
    custom_text = settings.pop("custom_text", False) or bool(config.hf_text_model)
    kind: Callable[..., nn.Module] = CLIP
    if custom_text:
        kind = CoCa if "multimodal_cfg" in settings else CustomTextCLIP
    try:
        with _Building(pause, draws=initialise):
            model = kind(**settings)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, OSError) as error:
        raise FailedPrecondition(
            f"open_clip cannot build this model: {error}", reason="VERSION_UNFIT"
        ) from error
    preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), dict(config.preprocess))
    preprocess["size"] = getattr(model.visual, "image_size", preprocess["size"])
    set_model_preprocess_cfg(model, preprocess)
    return model.eval().requires_grad_(False)


def config_of(model: nn.Module, model_cfg: Mapping[str, Any]) -> OpenClipConfig:
    """The config of a built model: with the preprocessing that open_clip left on it."""
    visual: Any = model.visual
    described = dict(visual.preprocess_cfg)
    plain = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in described.items()
    }
    return OpenClipConfig(model=model_cfg, preprocess=plain)


def _problem(config: OpenClipConfig) -> str:
    """What a config from elsewhere may not have, or nothing."""
    if not isinstance(config.model.get("embed_dim"), int):
        return "model_cfg.embed_dim is missing"
    for name in ("hf_model_name", "hf_tokenizer_name"):
        value = config.text.get(name)
        if value and not _HUB_ID.fullmatch(value):
            return f"text_cfg.{name} {value!r} is not a hub id"
    if ":" in str(config.vision.get("timm_model_name") or ""):
        return "vision_cfg.timm_model_name names a hub"  # timm would fetch and run from there
    options = set(config.text.get("tokenizer_kwargs") or {})
    if options - _TOKENIZER_OPTIONS:  # the rest reaches transformers, trust_remote_code included
        return f"text_cfg.tokenizer_kwargs has {sorted(options - _TOKENIZER_OPTIONS)}"
    scale = config.model.get("init_logit_scale", 1.0)
    return "" if math.isfinite(scale) else "model_cfg.init_logit_scale is not finite"


class _Building(TorchFunctionMode):
    """Gives large weights pages of their own, and skips drawing random ones that are about to be
    overwritten, which takes seconds on a big model."""

    def __init__(self, pause: Pause, *, draws: bool) -> None:
        super().__init__()
        self._pause, self._draws = pause, draws

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not self._draws:
            self._pause()
        if func in _RANDOM_FILLS and not self._draws:
            return args[0] if args else (kwargs or {})["tensor"]
        made = func(*args, **(kwargs or {}))
        return _own_pages(made) if func is torch.empty else made


def _own_pages(tensor: Tensor) -> Tensor:
    """An uninitialised tensor like this one, in pages that go back to the system with it.

    What the C library's heap is given back it keeps among what else lies there: three quarters of
    a gigabyte of a ViT-B-32 that had only been passed through (mallopt(3), M_MMAP_THRESHOLD).
    """
    if sys.platform == "win32":
        return tensor
    if (
        tensor.nbytes < _OWN_PAGES_BYTES
        or tensor.device.type != "cpu"
        or tensor.layout != torch.strided
    ):
        return tensor
    pages = mmap.mmap(-1, tensor.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=tensor.dtype).view(tensor.shape)


_RANDOM_FILLS = {
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.erfinv_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
}
