"""Which weights of an open_clip model are what, by their names. No torch here.

Knows open_clip's own towers, its ModifiedResNet, timm's and those of Hugging Face.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hotclip_server.training.config import Matrix, Method, TrainConfig
from hotclip_server.training.errors import FieldViolation

LOGIT_PARAMETERS = ("logit_scale", "logit_bias")
IMAGE = "visual."

_BLOCK = re.compile(
    r"\.layer(\d+)\.(\d+)\."  # ModifiedResNet
    r"|(?:^|\.)(?:resblocks|blocks|block|layers|layer|stages)\.(\d+)"
    r"(?:\.(?:blocks|layers)\.(\d+))?\."
)
_FIRST = re.compile(
    r"(?:^|\.)(?:conv[123]|bn[123]|class_embedding|positional_embedding|token_embedding|ln_pre"
    r"|embeddings|word_embeddings|embed_tokens|shared|patch_embed|pos_embed|cls_token|reg_token"
    r"|norm_pre|stem|patchnorm_pre_ln)(?:\.|$)"
)
_PROJECTION = re.compile(
    r"visual\.proj|visual\.head\..+|visual\.attnpool\.c_proj\..+"
    r"|(?:text\.)?text_projection(?:\..+)?|text\.proj\..+"
)
_FUSED = re.compile(r".*\.(?:in_proj_weight|qkv\.weight)")
_FUSED_KV = re.compile(r".*\.kv\.weight")
_SINGLE: Mapping[Matrix, re.Pattern[str]] = {
    "q": re.compile(r".*\.(?:q|q_proj|query|q_lin)\.weight"),
    "k": re.compile(r".*\.(?:k|k_proj|key|k_lin)\.weight"),
    "v": re.compile(r".*\.(?:v|v_proj|value|v_lin)\.weight"),
    "out": re.compile(
        r".*\.(?:out_proj|attn\.proj|attn_pool\.proj|attention\.output\.dense|attnpool\.c_proj|o"
        r"|out_lin)\.weight"
    ),
    "mlp": re.compile(
        r".*\.(?:mlp\.\w+|\d+\.intermediate\.dense|\d+\.output\.dense|DenseReluDense\.\w+"
        r"|ffn\.lin[12])\.weight"
    ),
}


def is_image(name: str) -> bool:
    """Whether a parameter belongs to the vision tower."""
    return name.startswith(IMAGE)


def is_text(name: str) -> bool:
    """Whether a parameter belongs to the text tower."""
    return not is_image(name) and name not in LOGIT_PARAMETERS


def is_block(module: str) -> bool:
    """Whether a module, by its name, is one of those that a tower is a chain of."""
    match = _BLOCK.search(f"{module}.")
    return match is not None and match.end() == len(module) + 1


def is_projection(name: str) -> bool:
    """Whether a parameter is part of the last projection of a tower."""
    return _PROJECTION.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `start` to `stop` of a matrix, which may hold several."""

    name: str
    start: int
    stop: int


def attention_rows(
    shapes: Mapping[str, Sequence[int]], targets: Sequence[Matrix]
) -> Iterator[Rows]:
    """Where the wanted matrices of all blocks are, those of both towers."""
    for name, shape in shapes.items():
        if len(shape) != 2:
            continue
        parts: tuple[Matrix, ...] = ()
        if _FUSED.fullmatch(name):
            parts = ("q", "k", "v")
        elif _FUSED_KV.fullmatch(name):
            parts = ("k", "v")
        else:
            parts = tuple(part for part, single in _SINGLE.items() if single.fullmatch(name))[:1]
        for place, part in enumerate(parts):
            height = shape[0] // len(parts)
            if part in targets:
                yield Rows(name, place * height, (place + 1) * height)


def depths(names: Iterable[str]) -> dict[str, int]:
    """How far each parameter is from the input of its tower.

    0 is embeddings and stems, 1 the first block, and one more than the blocks what comes after
    them. What belongs to no tower is left out.
    """
    found: dict[str, int] = {}
    known = list(names)
    for tower in (is_image, is_text):
        mine = [name for name in known if tower(name)]
        blocks = {name: _block(name) for name in mine}
        order = sorted({block for block in blocks.values() if block is not None})
        place = {block: number for number, block in enumerate(order, 1)}
        for name, block in blocks.items():
            last = len(order) + 1
            found[name] = place[block] if block else 0 if _is_first(name) else last
    return found


def layer_rates(names: Iterable[str], decay: float) -> dict[str, float]:
    """Share of the learning rate of each parameter: decay to the power of blocks after it."""
    known = list(names)
    depth = depths(known)
    last = {is_image(name): 0 for name in depth}
    for name, value in depth.items():
        last[is_image(name)] = max(last[is_image(name)], value)
    return {
        name: decay ** (last[is_image(name)] - depth[name]) if name in depth else 1.0
        for name in known
    }


def trained_names(shapes: Mapping[str, Sequence[int]], config: TrainConfig) -> set[str]:
    """Parameters of a model that get gradients; of LoRA the matrices that change."""
    wanted: set[str] = set(shapes)
    match config.method:
        case "lora":
            wanted = {rows.name for rows in attention_rows(shapes, config.lora.targets)}
        case "projection":
            wanted = {name for name in shapes if is_projection(name)}
    if config.freeze_layers:
        wanted -= {name for name, depth in depths(shapes).items() if depth <= config.freeze_layers}
    if config.locks_image:
        wanted = {name for name in wanted if not is_image(name)}
    if config.lock_text:
        wanted = {name for name in wanted if not is_text(name)}
    return wanted | {name for name in LOGIT_PARAMETERS if name in shapes}


def model_violations(
    shapes: Mapping[str, Sequence[int]], config: TrainConfig
) -> Iterator[FieldViolation]:
    """What a configuration asks of a model with these parameters that it does not have."""
    if config.loss == "siglip" and "logit_bias" not in shapes:
        yield FieldViolation("loss", "SIGLIP needs a model with a logit bias, this one has none")
    depth = depths(shapes)
    deepest = max(depth.values()) - 1
    if config.freeze_layers > deepest:
        reason = f"the deeper tower has {deepest} blocks, is {config.freeze_layers}"
        yield FieldViolation("freeze_layers", reason)
        return
    names = trained_names(shapes, config)
    for tower, locked, what in (
        (is_image, config.locks_image, "clip-vision"),
        (is_text, config.lock_text, "clip-text"),
    ):
        if not locked and not any(tower(name) for name in names):
            reason = f"finds nothing to train in {what}: lock it or choose another"
            field: Method | str = "freeze_layers" if config.freeze_layers else "method"
            yield FieldViolation(field, reason)


def _block(name: str) -> tuple[int, ...] | None:
    match = _BLOCK.search(name)
    return None if match is None else tuple(int(part) for part in match.groups() if part)


def _is_first(name: str) -> bool:
    return _FIRST.search(name) is not None and not name.startswith("visual.attnpool.")
