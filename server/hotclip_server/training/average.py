"""The moving average of the weights, which is what is measured and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from hotclip_server.training.tuning import Tuning


class WeightAverage:
    """Exponential moving average of all that a run changes.

    The weight of the newest falls from 1 to 1/horizon, so the start does not linger.
    """

    def __init__(self, tuning: Tuning, horizon: float) -> None:
        self._tuning = tuning
        self._horizon = max(1.0, horizon)  # in steps
        self._updates = 0
        self._live = tuning.state()
        self._average = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, pause: Callable[[], None] = lambda: None) -> None:
        """Takes in the weights after a step; pauses between tensors."""
        self._updates += 1
        newest = max(1.0 / self._horizon, 1.0 / (1 + 0.1 * self._updates))
        for name, average in self._average.items():
            average.lerp_(self._live[name], newest)
            pause()

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model holds the average inside, its own weights again after."""
        own = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self.swap_in()
        try:
            yield
        finally:
            self._load(own)

    def swap_in(self) -> None:
        """Put the average into the model for good."""
        self._load(self._average)

    @property
    def updates(self) -> int:
        """How many steps it has seen."""
        return self._updates

    def state(self) -> Mapping[str, torch.Tensor]:
        """The average, live, by the names of `Tuning.state`."""
        return self._average

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor], updates: int) -> None:
        """Goes on from a `state` after so many updates."""
        for name, average in self._average.items():
            average.copy_(tensors[name])
        self._updates = updates

    @torch.no_grad()
    def _load(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(tensors[name])
        self._tuning.apply()
