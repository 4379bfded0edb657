"""The architectures that open_clip knows. Imports open_clip, and so torch."""

from __future__ import annotations

from typing import Any

import open_clip

from hotclip_server.models.protocol import ArchitectureInfo

# open_clip's defaults for what a config leaves out: CLIPVisionCfg and CLIPTextCfg.
IMAGE_SIZE = 224
CONTEXT_LENGTH = 77


def describe_architectures() -> list[ArchitectureInfo]:
    """All that have a config, by name; reads files, takes some milliseconds."""
    tags: dict[str, list[str]] = {}
    for name, tag in open_clip.list_pretrained():
        tags.setdefault(name, []).append(tag)
    return [_describe(name, tags.get(name, [])) for name in sorted(open_clip.list_models())]


def _describe(name: str, tags: list[str]) -> ArchitectureInfo:
    config: dict[str, Any] = open_clip.get_model_config(name)
    size = config["vision_cfg"].get("image_size", IMAGE_SIZE)
    return ArchitectureInfo(
        name=name,
        pretrained=tuple(sorted(tags)),
        dim=int(config["embed_dim"]),
        image_size=int(size[0] if isinstance(size, list | tuple) else size),
        context_length=int(config["text_cfg"].get("context_length", CONTEXT_LENGTH)),
    )
