"""Requests against the real batcher in virtual time: hours of load run in a blink, exactly."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hotclip_server.batching.batcher import Batcher, BatchLimits
from hotclip_server.batching.budget import Budget
from hotclip_server.batching.ticket import Priority
from hotclip_server.encoding.engines.protocol import EngineFigures
from hotclip_server.encoding.protocol import Encoder, Prepared, Tower
from hotclip_server.errors import HotclipError
from hotclip_server.testing import FakeEncoder

from .fakes import item, number_of

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything can run, then jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        loop: Any = self
        timers = loop._scheduled
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
            loop._timer_cancelled_count -= 1
        if not loop._ready:
            if not timers:
                raise RuntimeError("everybody waits and nothing will happen: something was lost")
            self._now = max(self._now, timers[0]._when)
        super()._run_once()  # type: ignore[misc]  # private of asyncio


def simulate(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work())


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a batch really takes."""

    launch_s: float = 0.004
    item_s: float = 0.0
    token_s: float = 0.001
    best_batch: int = 8
    padded: bool = True

    def seconds(self, lengths: Sequence[int]) -> float:
        tokens = max(lengths) * len(lengths) if self.padded else sum(lengths)
        return self.launch_s + self.item_s * len(lengths) + self.token_s * tokens

    def figures(self) -> EngineFigures:
        points = tuple(
            (items, length, self.seconds([length] * items))
            for length in (10, 5, 40)
            for items in (1, 2, 4, 8, 16)
        )
        return EngineFigures(best_batch=self.best_batch, seconds=points, padded=self.padded)


class TimedEncoder(FakeEncoder):
    """A version of known speed; `measured` False: the batcher has to find it out."""

    def __init__(self, seed: str, speed: Speed, *, measured: bool = True) -> None:
        super().__init__(seed, dim=4)
        self.speed = speed
        self._figures = speed.figures() if measured else None

    def figures(self, tower: Tower) -> EngineFigures | None:
        return self._figures


@dataclass
class Version:
    version_id: str
    encoder: TimedEncoder


def version(name: str, speed: Speed | None = None, *, measured: bool = True) -> Version:
    return Version(name, TimedEncoder(name, speed or Speed(), measured=measured))


@dataclass(kw_only=True)
class Run:
    """One batch on the device."""

    encoder: Encoder
    tower: Tower
    numbers: list[int]
    lengths: list[int]
    closed: float
    """When the batcher handed it over."""
    began: float = 0.0
    ended: float = 0.0


@dataclass
class SimulatedDevice:
    """Runs batches one after the other, `depth` may be handed over at a time. A batch that is
    handed over while another runs begins at once when that one ends."""

    depth: int = 1
    fails: Callable[[Prepared], bool] = lambda _: False
    runs: list[Run] = field(default_factory=list)
    _held: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(
        self, encoder: Encoder, tower: Tower, batch: Sequence[Prepared]
    ) -> NDArray[np.float32]:
        assert batch, "an empty batch"
        assert isinstance(encoder, TimedEncoder)
        self._held += 1
        assert self._held <= self.depth, "more batches than the device takes"
        loop = asyncio.get_running_loop()
        run = Run(
            encoder=encoder,
            tower=tower,
            numbers=[number_of(p) for p in batch],
            lengths=[p.length for p in batch],
            closed=loop.time(),
        )
        self.runs.append(run)
        async with self._turn:
            run.began = loop.time()
            await asyncio.sleep(encoder.speed.seconds(run.lengths))
            run.ended = loop.time()
        self._held -= 1
        if any(self.fails(p) for p in batch):
            raise RuntimeError("the device fails")
        return np.stack([np.full(4, number_of(p), np.float32) for p in batch])


@dataclass(kw_only=True)
class Request:
    """What somebody asks for, and what came of it."""

    at: float
    version: Version
    numbers: Sequence[int]
    lengths: Sequence[int] | None = None
    tower: Tower = Tower.TEXT
    priority: Priority = Priority.INTERACTIVE
    deadline_s: float | None = None
    """After `at`."""
    cancel_s: float | None = None
    """After `at`."""
    rows: list[Any] | None = None
    error: HotclipError | None = None
    ended: float = 0.0
    cancelled: bool = False

    @property
    def deadline(self) -> float | None:
        return None if self.deadline_s is None else self.at + self.deadline_s

    def items(self) -> list[Prepared]:
        lengths = self.lengths or [10] * len(self.numbers)
        return [item(n, self.tower, k) for n, k in zip(self.numbers, lengths, strict=True)]


def make(
    *, depth: int = 1, items: int = 100_000, max_batch: int = 0
) -> tuple[Batcher, SimulatedDevice]:
    """A batcher on virtual time; call it inside `simulate`."""
    device = SimulatedDevice(depth)
    limits = BatchLimits(max_batch=max_batch, budget=Budget(items=items, nbytes=1 << 30))
    return Batcher(device, limits, asyncio.get_running_loop().time), device


async def play(batcher: Batcher, requests: Sequence[Request]) -> None:
    """Sends requests at their times and waits for all of them."""

    async def one(request: Request) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(request.at - loop.time())
        call = asyncio.ensure_future(
            batcher.encode(
                request.version,
                request.items(),
                deadline=request.deadline,
                priority=request.priority,
            )
        )
        if request.cancel_s is not None:
            loop.call_later(request.cancel_s, call.cancel)
        try:
            request.rows = await call
        except HotclipError as error:
            request.error = error
        except asyncio.CancelledError:
            request.cancelled = True
        request.ended = loop.time()

    await asyncio.gather(*(one(request) for request in requests))
    # A batch goes on when everybody who waited for it has left.
    await asyncio.sleep(10)
    assert batcher.ledger.items == 0
    assert batcher.ledger.nbytes == 0
    assert batcher._queues._lanes == {}
    assert batcher._admission.backlog.total_s(Priority.BULK) == 0
