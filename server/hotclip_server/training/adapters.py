"""Low-rank changes of a model's matrices, beside the model.

LoRA (Hu et al. 2021) is W + s · up · down; DoRA (Liu et al. 2024) is m · V / |V| by rows with
V = W + s · up · down, where |V| is a constant in the backward pass (section 4.3). The model holds
the merged matrices all the time: its forward pass knows of no adapters, whatever kind of attention
it has, and nothing is merged or unmerged around it. The backward pass gives the gradient of each
merged matrix; the chain rule through the formula above gives those of the factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hotclip_server.training.config import TrainConfig
from hotclip_server.training.selection import LOGIT_PARAMETERS, attention_rows, trained_names


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The change of some rows of one matrix."""

    target: nn.Parameter
    """The model's own matrix."""
    start: int
    stop: int
    """Its rows that change."""
    base: Tensor
    """[rows, columns]: what they were."""
    down: nn.Parameter
    """[rank, columns]."""
    up: nn.Parameter
    """[rows, rank]."""
    lengths: nn.Parameter | None
    """[rows]: lengths of the rows, for DoRA."""
    scale: float

    def merged(self) -> Tensor:
        """[rows, columns], with its graph if gradients are on."""
        changed = torch.addmm(self.base, self.up, self.down, alpha=self.scale)
        if self.lengths is None:
            return changed
        norms = changed.detach().norm(dim=1).clamp_min(torch.finfo(changed.dtype).tiny)
        factors: Tensor = self.lengths / norms  # a row of zeros stays one
        return factors[:, None] * changed

    def factors(self) -> dict[str, nn.Parameter]:
        """What is learnt."""
        found = {"down": self.down, "up": self.up}
        return found if self.lengths is None else {**found, "lengths": self.lengths}


class Adapters:
    """Implements `Tuning`: factors of the matrices that LoRA changes, and the logit scale."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        named = dict(model.named_parameters())
        shapes = {name: tuple(value.shape) for name, value in named.items()}
        names = trained_names(shapes, config)
        generator = torch.Generator().manual_seed(config.seed)
        self._adapters = {
            f"lora.{rows.name}.{rows.start}": _adapter(
                named[rows.name], rows.start, rows.stop, config, generator
            )
            for rows in attention_rows(shapes, config.lora.targets)
            if rows.name in names
        }
        logits = {name: named[name] for name in LOGIT_PARAMETERS if name in named}
        self.moved = {**{name: named[name] for name in shapes if name in names}, **logits}
        self.parameters = {
            f"{name}.{part}": factor
            for name, adapter in self._adapters.items()
            for part, factor in adapter.factors().items()
        } | logits

    def gather(self) -> None:
        """Gives the factors the gradients that follow from those of the matrices, and drops these.

        A factor of a matrix without a gradient has none.
        """
        for adapter in self._adapters.values():
            factors = list(adapter.factors().values())
            whole = adapter.target.grad
            gradients: list[Tensor | None] = [None] * len(factors)
            if whole is not None:
                with torch.enable_grad():
                    part = whole[adapter.start : adapter.stop]
                    gradients = list(torch.autograd.grad(adapter.merged(), factors, part))
            for factor, gradient in zip(factors, gradients, strict=True):
                factor.grad = gradient
        for adapter in self._adapters.values():
            adapter.target.grad = None

    @torch.no_grad()
    def apply(self) -> None:
        """Puts the merged matrices into the model."""
        for adapter in self._adapters.values():
            adapter.target[adapter.start : adapter.stop].copy_(adapter.merged())

    def state(self) -> dict[str, Tensor]:
        """The factors and the logit scale."""
        return dict(self.parameters)


def _adapter(
    target: nn.Parameter, start: int, stop: int, config: TrainConfig, generator: torch.Generator
) -> Adapter:
    """`up` is 0, so nothing is changed yet; `down` as in the reference implementation."""
    base = target.detach()[start:stop].clone()
    rank, columns = config.lora.rank, base.shape[1]
    down = torch.empty(rank, columns)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
    lengths = nn.Parameter(base.norm(dim=1)) if config.lora.dora else None
    return Adapter(
        target=target,
        start=start,
        stop=stop,
        base=base,
        down=nn.Parameter(down.to(base)),
        up=nn.Parameter(base.new_zeros(stop - start, rank)),
        lengths=lengths,
        scale=config.lora.scale,
    )
