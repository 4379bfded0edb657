"""Engines of a given speed and exactness, and an encoder that takes them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotclip_server.encoding.engines.protocol import (
    EAGER,
    Engine,
    EngineChoice,
    EngineFigures,
    EngineUnfit,
)
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.testing import FakeEncoder


class FakeEngine:
    """Rows of a `FakeEncoder`, off by `error`, after `item_s` an item."""

    padded = True

    def __init__(
        self, choice: EngineChoice, host: FakeHost, tower: Tower, item_s: float, error: float
    ) -> None:
        self.name, self.precision = choice.engine, choice.precision
        self.sizes: list[int] = []
        self.closed = 0
        self.broken = False
        self._host, self._tower, self._item_s, self._error = host, tower, item_s, error

    def run(self, batch: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        assert not self.closed
        if self.broken:
            raise RuntimeError("out of something")
        self.sizes.append(len(batch))
        time.sleep(self._item_s * len(batch))
        rows = np.stack([self._host.vector(Prepared(self._tower, item)) for item in batch])
        return rows + np.float32(self._error) * np.roll(rows, 1, axis=1)

    def slow_down(self, times: float) -> None:
        self._item_s *= times

    def close(self) -> None:
        self.closed += 1


class FakeHost(FakeEncoder):
    """Like `OpenClipEncoder`."""

    def __init__(self, seed: str = "a", shape: str = "shape") -> None:
        super().__init__(seed)
        self.shape = shape
        self.installed: dict[Tower, Engine] = {}
        self.noted: dict[Tower, EngineFigures | None] = {}
        self.released = self.gone = False

    def source(self, tower: Tower) -> Any:
        return None if self.gone else (self, tower)

    def install(self, tower: Tower, engine: Engine, figures: EngineFigures | None) -> None:
        self.installed[tower] = engine
        self.noted[tower] = figures

    def note(self, tower: Tower, figures: EngineFigures | None) -> None:
        self.noted[tower] = figures

    def release_model(self) -> None:
        self.released = True

    def engine(self, tower: Tower) -> EngineChoice:
        engine = self.installed.get(tower)
        return EAGER if engine is None else EngineChoice(engine.name, engine.precision)

    def figures(self, tower: Tower) -> EngineFigures | None:
        return self.noted.get(tower)


@dataclass
class Workshop:
    """Builds engines; what each is, a test says."""

    item_s: dict[str, float]
    """Seconds an item by "engine/precision"; others are unfit."""
    error: dict[str, float] = field(default_factory=dict)
    """By "engine/precision", or "engine/precision seed" for one version's weights."""
    made: list[FakeEngine] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    """Those that raise when they run."""

    def __call__(self, choice: EngineChoice, source: Any) -> Engine:
        host, tower = source
        if str(choice) not in self.item_s:
            raise EngineUnfit("not here")
        error = self.error.get(f"{choice} {host._seeds[tower]}", self.error.get(str(choice), 0.0))
        engine = FakeEngine(choice, host, tower, self.item_s[str(choice)], error)
        engine.broken = str(choice) in self.broken
        self.made.append(engine)
        return engine

    def count(self, choice: str) -> int:
        return sum(f"{engine.name}/{engine.precision}" == choice for engine in self.made)
