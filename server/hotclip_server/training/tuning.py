"""Which weights a run moves, and how its steps reach the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from hotclip_server.training.adapters import Adapters
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.selection import trained_names


class Tuning(Protocol):
    """The weights of one run. The model holds the present weights after every `apply`.

    A step is: the backward pass into the model's own parameters, `gather`, the optimizer on
    `parameters`, `apply`.
    """

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What the optimizer moves, by name."""

    @property
    def moved(self) -> dict[str, nn.Parameter]:
        """The model's parameters that need a gradient in the backward pass, by name."""

    def gather(self) -> None:
        """Gradients of the model's parameters to those of `parameters`."""

    def apply(self) -> None:
        """What was written into `state` reaches the model."""

    def state(self) -> Mapping[str, Tensor]:
        """All that a run changes, live: what a checkpoint holds and a moving average averages."""


class Direct:
    """The model's own parameters are moved: nothing to gather and nothing to apply."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        named = dict(model.named_parameters())
        names = trained_names({name: value.shape for name, value in named.items()}, config)
        self.parameters = {name: value for name, value in named.items() if name in names}
        self._statistics = (
            {name: value for name, value in model.named_buffers() if value.is_floating_point()}
            if config.train_batch_norm
            else {}
        )

    @property
    def moved(self) -> dict[str, nn.Parameter]:
        return self.parameters

    def gather(self) -> None:
        pass

    def apply(self) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        """Parameters, and statistics of BatchNorm if they are learnt; not counters."""
        return {**self.parameters, **self._statistics}


def tuning_of(model: nn.Module, config: TrainConfig) -> Tuning:
    """How this run changes `model`, which holds the base's weights.

    Args:
        config: Without "auto"; see `TrainConfig.resolved`.
    """
    return Adapters(model, config) if config.method == "lora" else Direct(model, config)
