"""What the rest of the server knows of an engine: what runs one tower of one version.

No torch here. "eager" is plain open_clip in fp32: the reference and the fallback. Any other
engine serves a version only after it gave the same embeddings for the same probes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

ENGINES = ("eager", "torch", "onnx", "cuda")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")


class PendingBatch(Protocol):
    """A batch that the device has been given."""

    def wait(self) -> NDArray[np.float32]:
        """Blocks until it is done. Any thread.

        Returns:
            float32 (items, dim).

        Raises:
            RuntimeError: the device has failed.
        """


class Engine(Protocol):
    """One tower, ready to run. Device thread only."""

    @property
    def name(self) -> str:
        """One of `ENGINES`."""

    @property
    def precision(self) -> str:
        """One of `PRECISIONS`: of the products, not of the result."""

    @property
    def padded(self) -> bool:
        """See `EngineFigures.padded`."""

    def run(self, batch: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Runs one batch; blocks.

        Args:
            batch: At least one item: int64 token ids (length,) as `TextTower.shorten` gives
                them, of any lengths, or uint8 RGB (height, width, 3) of the model's input size.

        Returns:
            float32 (len(batch), dim): features as the tower gives them, not normalised.
        """

    def close(self) -> None:
        """Frees the weights; no call may follow."""


@runtime_checkable
class OverlappingEngine(Protocol):
    """What an `Engine` offers besides if batches overlap on its device."""

    def place(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image where the device can fetch it, else itself. Thread-safe."""

    def submit(self, batch: Sequence[NDArray[Any]]) -> PendingBatch:
        """Like `Engine.run`, but returns when the device has all that it needs."""

    def warm_up(self) -> Iterator[float]:
        """Makes ready what requests would else wait for, one step at each `next`, none longer
        than a batch; device thread only. It runs batches before that too, only slower.

        Yields:
            Seconds after which the next step makes sense.
        """


class EngineUnfit(Exception):
    """This engine can't run this tower here; the message says why."""


@dataclass(frozen=True, order=True)
class EngineChoice:
    """Which engine, in which precision."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine}/{self.precision}"


EAGER = EngineChoice("eager", "fp32")
"""The reference and the fallback."""


@dataclass(frozen=True, kw_only=True)
class EngineFigures:
    """What was measured of an engine on one tower.

    seconds: Of a batch of `items`, each of `length` (tokens; 1 for images). The length of the
        first is the one that `items_per_s` speaks of.
    """

    best_batch: int
    """Fewest items with at least 97 % of the best throughput."""
    seconds: tuple[tuple[int, int, float], ...]
    padded: bool = True
    """Whether every item of a batch costs as much as its longest; False: lengths add up."""

    @property
    def items_per_s(self) -> float:
        """At the best batch."""
        if not self.seconds:
            return 0.0
        typical = self.seconds[0][1]
        return max(
            items / seconds
            for items, length, seconds in self.seconds
            if length == typical and items <= self.best_batch
        )
