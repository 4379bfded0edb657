"""A device whose batches the test ends, and a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hotclip_server.batching.batcher import Batcher, BatchLimits
from hotclip_server.batching.budget import Budget
from hotclip_server.encoding.protocol import Encoder, Prepared, Tower
from hotclip_server.testing import FakeEncoder


@dataclass
class Version:
    """A resident version."""

    version_id: str
    encoder: FakeEncoder


def version(name: str) -> Version:
    return Version(name, FakeEncoder(name, dim=4))


def item(number: int, tower: Tower = Tower.TEXT, length: int = 1) -> Prepared:
    return Prepared(tower, np.full(length, number, np.int64))


def number_of(prepared: Prepared) -> int:
    return int(prepared.array[0])


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Batch:
    """What the device was given."""

    encoder: Encoder
    tower: Tower
    numbers: list[int]


@dataclass
class ManualDevice:
    """Runs a batch when the test says so; checks that one runs at a time."""

    clock: Clock
    batches: list[Batch] = field(default_factory=list)
    fails: Callable[[Prepared], bool] = lambda _: False
    gate: asyncio.Semaphore | None = None
    running: int = 0
    depth: int = 1

    async def run(
        self, encoder: Encoder, tower: Tower, batch: Sequence[Prepared]
    ) -> NDArray[np.float32]:
        assert self.running == 0, "two batches at a time"
        assert batch, "an empty batch"
        self.running += 1
        self.batches.append(Batch(encoder, tower, [number_of(p) for p in batch]))
        try:
            if self.gate is None:
                await asyncio.sleep(0)
            else:
                await self.gate.acquire()
            self.clock.now += 0.01
            if any(self.fails(p) for p in batch):
                raise RuntimeError("the device fails")
            return np.stack([np.full(4, number_of(p), np.float32) for p in batch])
        finally:
            self.running -= 1


def make_batcher(
    *,
    max_batch: int = 4,
    items: int = 100,
    nbytes: int = 1 << 20,
    tell: Callable[[bool], None] = lambda _: None,
) -> tuple[Batcher, ManualDevice, Clock]:
    clock = Clock()
    device = ManualDevice(clock)
    limits = BatchLimits(max_batch=max_batch, budget=Budget(items=items, nbytes=nbytes))
    return Batcher(device, limits, clock, tell), device, clock


async def settle(turns: int = 20) -> None:
    """Lets everything that can run, run."""
    for _ in range(turns):
        await asyncio.sleep(0)
