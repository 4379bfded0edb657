"""How builtin:mini is fine-tuned for each task: methods, and what is on by default left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hotclip_server.training.config import CROPS, FULL_RATE, LoraConfig, Positives, TrainConfig

WISE_FT = 0.5
HALF = "_half"
"""What the name of a method ends with for weights half-way between the base's and its own."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is made; its seed is that of the run."""

    config: TrainConfig
    replay: bool = False
    """Whether old pairs of the task are replayed, as `replay_data` does it."""
    last: bool = False
    """Whether these are the weights of the last epoch of the run that `instead_of` keeps the best
    one of; it is not run again for them."""
    seen: bool = False
    """Whether what is asked for is trained on too: a bound, no result."""
    wise_ft: float = 1.0
    """Share of the trained weights in those that are measured, the rest is the base's."""
    instead_of: str = ""
    """The method that this is, but for one thing; empty: it is a method of its own."""


DEFAULT = TrainConfig(method="auto")
"""What a request that says nothing gets."""
_LORA = LoraConfig(rank=2, targets=("q", "k", "v", "out", "mlp"))
_OTHER_POSITIVES: Sequence[Positives] = ("share", "mask")
_EMA = 0.1
"""Horizon of the moving average, where there is one."""
# With what was on by default when they were measured first. Without the average they reach the
# same (`ema_off`), and of equal texts the positives are the same loss.
_BEFORE = TrainConfig(learning_rate=1e-3, ema=_EMA, positives="share")
_LIT = replace(_BEFORE, method="lit", epochs=16, batch_size=128)
_FULL = replace(_BEFORE, method="full", epochs=6, augment=CROPS)
_SMALL = 2e-4
"""Learning rate of a style: nearer than a language."""

_LONG = replace(DEFAULT, method="full", epochs=40)
"""Eight times as many epochs as by default: longer than two hundred pairs have use for."""

_COMMON: Mapping[str, Mapping[str, Any]] = {
    "warmup": {"warmup": 0.0},
    "cosine": {"scheduler": "constant"},
    "weight_decay": {"weight_decay": 0.0},
    "clipping": {"clip_norm": 1e9},  # above any
    "beta2": {"beta2": 0.999},
    "raised_rate": {"learning_rate": FULL_RATE},
}
"""What follows common practice for CLIP, left out: β₂ is AdamW's own then, the learning rate that
of large models."""

METHODS: Mapping[str, Mapping[str, Recipe]] = {
    "german": {
        "full": Recipe(config=_FULL),
        "lora": Recipe(config=replace(_FULL, method="lora", learning_rate=1e-2, lora=_LORA)),
        "lit": Recipe(config=_LIT),
        "replay": Recipe(config=replace(_LIT, epochs=36), replay=True, wise_ft=0.7),
        "default": Recipe(config=DEFAULT),
    },
    "black": {
        "full": Recipe(config=replace(DEFAULT, method="full", learning_rate=1e-3)),
        "lora": Recipe(config=replace(DEFAULT, method="lora")),
        "lit": Recipe(config=replace(DEFAULT, method="lit", epochs=8)),
        "replay": Recipe(
            config=replace(DEFAULT, method="full", learning_rate=1e-3), replay=True, wise_ft=0.55
        ),
        "default": Recipe(config=DEFAULT),
    },
    "black_alone": {
        "full": Recipe(config=replace(_FULL, epochs=5, learning_rate=_SMALL)),
        "lora": Recipe(config=replace(DEFAULT, method="lora")),
        "lit": Recipe(config=replace(_LIT, epochs=8, learning_rate=_SMALL)),
        "default": Recipe(config=DEFAULT),
    },
    "few": {
        "full": Recipe(config=replace(_FULL, epochs=20, learning_rate=_SMALL)),
        "lora": Recipe(config=replace(DEFAULT, method="lora", epochs=20)),
        "lit": Recipe(config=replace(_LIT, learning_rate=_SMALL)),
        "default": Recipe(config=DEFAULT),
    },
    "labels": {
        "lit": Recipe(
            config=replace(DEFAULT, method="lit", epochs=8, batch_size=128, learning_rate=1e-3)
        ),
    },
}
"""By task; as many epochs as one run of two minutes on two cores has room for."""

BOUNDS: Mapping[str, Mapping[str, Recipe]] = {
    "german": {},
    "black": {},
    "black_alone": {
        "oracle": Recipe(
            config=replace(DEFAULT, method="full", learning_rate=1e-3),
            seen=True,
        ),
    },
    "few": {"long": Recipe(config=_LONG)},
    "labels": {},
}
"""By task; what nobody would do, to judge other things by."""

ABLATIONS: Mapping[str, Mapping[str, Recipe]] = {
    "german": {
        "ema_off": Recipe(config=replace(_LIT, ema=0.0), instead_of="lit"),
        "layer_decay_0.8": Recipe(config=replace(DEFAULT, layer_decay=0.8), instead_of="default"),
    },
    "black": {
        f"{name}_off": Recipe(
            config=replace(METHODS["black"]["lit"].config, **without), instead_of="lit"
        )
        for name, without in _COMMON.items()
    },
    "black_alone": {
        "layer_decay_0.8": Recipe(config=replace(DEFAULT, layer_decay=0.8), instead_of="default"),
        "last_epoch": Recipe(config=DEFAULT, last=True, instead_of="default"),
    },
    "few": {
        "ema_on": Recipe(config=replace(DEFAULT, ema=_EMA), instead_of="default"),
        "augment_on": Recipe(config=replace(DEFAULT, augment=CROPS), instead_of="default"),
        "last_epoch": Recipe(config=DEFAULT, last=True, instead_of="default"),
        "long_last_epoch": Recipe(config=_LONG, last=True, instead_of="long"),
        "auto_full": Recipe(config=replace(DEFAULT, method="full"), instead_of="default"),
    },
    "labels": {
        f"positives_{kind}": Recipe(
            config=replace(METHODS["labels"]["lit"].config, positives=kind), instead_of="lit"
        )
        for kind in _OTHER_POSITIVES
    },
}
"""By task: one thing that is on by default left out, or one that is off put in. What items of one
label are to each other changes something where their texts differ alone: rows of equal texts that
ask for an image each, or for all of them each, are together the same loss."""


def recipes_of(task: str) -> Mapping[str, Recipe]:
    """All that is measured for a task, but for weights half-way."""
    return {**METHODS[task], **BOUNDS[task], **ABLATIONS[task]}


def runs_of(task: str) -> tuple[str, ...]:
    """Names of what is trained for a task; the last epoch is that of a run that is there anyway."""
    return tuple(name for name, recipe in recipes_of(task).items() if not recipe.last)


def rows_made_by(task: str, name: str) -> tuple[str, ...]:
    """Names of the rows of one run: a method's weights are measured half-way too."""
    half = (name + HALF,) if name in METHODS[task] else ()
    return (name, *half, *last_of(task, name))


def last_of(task: str, name: str) -> tuple[str, ...]:
    """Names of the rows of the last epoch of a run."""
    ablations = ABLATIONS[task].items()
    return tuple(key for key, one in ablations if one.last and one.instead_of == name)


def trained_as(row: str) -> str:
    """The name of the run that a row is of."""
    return row.removesuffix(HALF)
