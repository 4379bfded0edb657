"""Fingerprints of towers: which vectors may be compared.

A fingerprint covers all that decides a tower's vectors: fp32 weights, structure, pooling,
dimension, normalisation, and the image preprocessing or the tokenizer. The precision in
which the weights are stored is not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hotclip_server.encoding.protocol import Tower
from hotclip_server.pace import PIECE_BYTES, Pause, never

_SHARED = {"logit_scale", "logit_bias"}
"""Of neither tower: they scale cosines, not vectors."""
_STRUCTURE = {"custom_text", "embed_dim", "quick_gelu", "multimodal_cfg"}
_NOT_STRUCTURE = {"hf_model_name", "hf_tokenizer_name", "hf_model_pretrained"} | {
    "timm_model_pretrained",
    "patch_dropout",  # training only, as the next two
    "timm_drop",
    "timm_drop_path",
}


def encoder_id(
    tower: Tower,
    state: Mapping[str, Tensor],
    model_cfg: Mapping[str, Any],
    inputs: object,
    pause: Pause = never,
) -> str:
    """sha256, 32 hex digits, of one tower.

    Args:
        state: The model's whole state; only this tower's floating-point tensors count.
        inputs: What is done to an item before the tower: anything that JSON can say.
        pause: Called between pieces of about PIECE_BYTES.
    """
    part = model_cfg["vision_cfg" if tower is Tower.VISION else "text_cfg"]
    described = {
        "tower": tower.value,
        "normalisation": "l2",
        "inputs": inputs,
        "structure": {key: model_cfg[key] for key in sorted(_STRUCTURE & set(model_cfg))},
        "config": {key: part[key] for key in sorted(set(part) - _NOT_STRUCTURE)},
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name]
        if name in _SHARED or not tensor.is_floating_point():
            continue
        if name.startswith("visual.") != (tower is Tower.VISION):
            continue
        digest.update(f"{name}{list(tensor.shape)}".encode())
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        content = values.reshape(-1).numpy()
        step = PIECE_BYTES // content.itemsize
        for first in range(0, len(content), step):
            digest.update(content[first : first + step].data)
            pause()
    return digest.hexdigest()[:32]
