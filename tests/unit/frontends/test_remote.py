"""Requests of front ends through shared memory to a real batcher, all on one loop."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.batching.batcher import Batcher, BatchLimits
from hotclip_server.batching.budget import Budget
from hotclip_server.batching.cache import FeatureCache
from hotclip_server.batching.device import DeviceThread
from hotclip_server.batching.ticket import Answer, Demand, Priority
from hotclip_server.encoding.engines.protocol import EAGER, EngineChoice
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.errors import DeadlineExceeded, HotclipError, InvalidArgument, Unavailable
from hotclip_server.frontends.arena import ArenaSizes, map_arena, new_arena
from hotclip_server.frontends.frames import Frames
from hotclip_server.frontends.link import Link
from hotclip_server.frontends.messages import Engines
from hotclip_server.frontends.remote import NUMBERS, Call, RemoteBatcher
from hotclip_server.models.residents import Pin, Resident, Residents
from hotclip_server.pipeline import EncodePipeline, ItemLimits
from hotclip_server.testing import FakeEncoder

SIZES = ArenaSizes(items=2048, rows=136 << 10)
"""Eight images of 8 x 8 pixels; rows of five requests of a hundred items. A request of which more
than a quarter would be taken, or less than 16 KiB, has its rows in the answer."""


class Pair:
    """The device process's side and a front end's."""

    def __init__(self, batcher: Batcher, residents: Residents, resident: Resident) -> None:
        arena = new_arena(SIZES)
        self.resident = resident
        memory = map_arena(arena, SIZES)
        self.link = Link(batcher, memory, lambda told: None, lambda: None, lambda copy: None)
        self.number = self.link.lend(Pin(residents, resident))
        self.remote: RemoteBatcher
        self.arena = arena

    async def connect(self) -> None:
        ours, theirs = socket.socketpair()
        self.frames = Frames(
            lambda kind, body: self.remote.on_frame(kind, body), lambda error: None
        )
        memory = map_arena(self.arena, SIZES)
        os.close(self.arena)
        self.remote = RemoteBatcher(self.frames, memory, SIZES, lambda resident: self.number)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self.link.frames, sock=ours)
        await loop.create_connection(lambda: self.frames, sock=theirs)

    async def encode(
        self,
        items: Sequence[Prepared | HotclipError],
        deadline: float | None = None,
    ) -> Answer:
        async def feed(call: Call, part: range) -> None:
            for at in part:
                item = items[at]
                if isinstance(item, Prepared):
                    self.remote.put(call, [(at - part.start, item)])
                else:
                    self.remote.settle(call, at - part.start, item)

        demands = [
            Demand(i.tower, i.length, i.nbytes)
            if isinstance(i, Prepared)
            else Demand(Tower.VISION, 1, 192)
            for i in items
        ]
        return await self.remote.run(
            self.resident, demands, feed, deadline=deadline, priority=Priority.INTERACTIVE
        )


class World:
    """One batcher, one version, as many front ends as are asked for."""

    def __init__(self) -> None:
        self.encoder = FakeEncoder(dim=64)
        self.residents = Residents(lambda resident: None)
        self.resident = Resident(version_id="v", model="default", encoder=self.encoder)
        self.residents.add(self.resident)
        self.device = DeviceThread()
        limits = BatchLimits(budget=Budget(items=400, nbytes=1 << 20))
        self.batcher = Batcher(self.device, limits)
        self.pairs: list[Pair] = []

    async def pair(self) -> Pair:
        pair = Pair(self.batcher, self.residents, self.resident)
        self.pairs.append(pair)
        await pair.connect()
        return pair

    def check(self, items: Sequence[Prepared | HotclipError], answer: Answer) -> None:
        assert len(answer.rows) == len(items)
        for item, row in zip(items, answer.rows, strict=True):
            if isinstance(item, HotclipError):
                assert row is item
            else:
                assert not isinstance(row, HotclipError)
                np.testing.assert_array_equal(row, self.encoder.vector(item))


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    made.device.start()
    gc.disable()  # places come back without it
    try:
        yield made
    finally:
        gc.enable()
        if made.encoder.faults.hang is not None:
            made.encoder.faults.hang.set()
        for pair in made.pairs:
            pair.frames.close()
            pair.link.close()
        await asyncio.sleep(0.01)
        await made.batcher.stop()
        made.device.stop(5)


def images(seed: int, count: int) -> list[Prepared]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [Prepared(Tower.VISION, image) for image in pixels]


def texts(seed: int, count: int) -> list[Prepared]:
    rng = np.random.default_rng(seed)
    return [Prepared(Tower.TEXT, rng.integers(0, 99, rng.integers(1, 77))) for _ in range(count)]


async def until_free(pair: Pair) -> None:
    async with asyncio.timeout(5):
        while pair.remote.items.taken or pair.remote.rows.taken:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


async def test_a_full_arena_makes_requests_wait_and_fails_none() -> None:
    async with world() as here:
        pair = await here.pair()
        wanted = [[*images(n, 30), *texts(n, 100)] for n in range(8)]
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(pair.encode(items) for items in wanted[:3]))
            answers += await asyncio.gather(*(pair.encode(items) for items in wanted[3:6]))
            for items in wanted[6:]:  # more than the budget too: in parts
                answers.append(await pair.encode([*items, *items, *items, *items]))
        for items, answer in zip(wanted, answers, strict=False):
            here.check(items if len(answer.rows) == len(items) else items * 4, answer)
        await until_free(pair)


async def test_numbers_of_requests_begin_anew() -> None:
    async with world() as w:
        pair = await w.pair()
        pair.remote._numbers = itertools.count(NUMBERS - 1)
        for seed in range(3):
            items = [*texts(seed, 5), *images(seed, 3)]
            w.check(items, await pair.encode(items))
        await until_free(pair)


async def test_what_failed_in_the_front_end_stays_there() -> None:
    async with world() as here:
        pair = await here.pair()
        bad = InvalidArgument.field("image", "empty")
        items: list[Prepared | HotclipError] = [bad, *images(1, 2), bad]
        here.check(items, await pair.encode(items))
        here.check([bad], await pair.encode([bad]))


async def test_errors_of_the_device_process_come_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # what is captured keeps the frames of errors
    async with world() as here:
        pair = await here.pair()
        first, second = images(2, 2)
        here.encoder.faults.fails = lambda item: item.key == second.key
        answer = await pair.encode([first, second])
        here.check([first], Answer(rows=answer.rows[:1], queue_s=0, compute_s=0))
        assert isinstance(answer.rows[1], HotclipError)
        assert answer.rows[1].message == "the encoder failed on this item"
        with pytest.raises(DeadlineExceeded):
            await pair.encode([first], deadline=0.0)
        here.encoder.faults.hang = threading.Event()
        waiting = [asyncio.create_task(pair.encode(texts(n, 100))) for n in range(4)]
        await asyncio.sleep(0.1)
        with pytest.raises(Unavailable, match="queue is full"):
            await pair.encode(texts(9, 100))
        here.encoder.faults.hang.set()
        await asyncio.gather(*waiting)
        await until_free(pair)


async def test_an_item_outlives_the_front_end_that_brought_it_first() -> None:
    async with world() as here:
        one, two = await here.pair(), await here.pair()
        hang = here.encoder.faults.hang = threading.Event()
        block = asyncio.create_task(one.encode(texts(0, 1)))
        await asyncio.sleep(0.05)
        items = images(3, 4)
        brought = asyncio.create_task(one.encode(items))
        await asyncio.sleep(0.05)
        joined = asyncio.create_task(two.encode(items))
        await asyncio.sleep(0.05)
        brought.cancel()
        others = asyncio.create_task(one.encode(images(4, 4)))  # would overwrite them
        await asyncio.sleep(0.05)
        one.frames.close()
        await asyncio.sleep(0.05)
        others.cancel()
        block.cancel()
        hang.set()
        here.check(items, await joined)
        await until_free(two)
        assert here.resident.pins == 1  # of the second front end
        assert here.batcher.ledger.items == 0


async def test_cancelled_requests_leave_nothing_behind() -> None:
    async with world() as here:
        pair = await here.pair()
        hang = here.encoder.faults.hang = threading.Event()
        tasks = [asyncio.create_task(pair.encode(images(n, 12))) for n in range(9)]
        tasks.append(asyncio.create_task(pair.encode(texts(1, 100))))
        await asyncio.sleep(0.1)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0.05)
        hang.set()
        async with asyncio.timeout(10):
            done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(d, asyncio.CancelledError) for d in done] == [True, False] * 5
        for n in range(1, 9, 2):
            answer = done[n]
            assert isinstance(answer, Answer)
            here.check(images(n, 12), answer)
        await until_free(pair)
        assert here.batcher.ledger.items == 0


async def test_requests_that_were_taken_back_before_the_device_process_looked_leave_nothing() -> (
    None
):
    async with world() as here:
        pair = await here.pair()
        device: Any = pair.link.frames._transport
        device.pause_reading()  # as if it were busy
        tasks = [asyncio.create_task(pair.encode(texts(n, 100))) for n in range(8)]
        await asyncio.sleep(0.02)
        assert pair.remote.rows.taken == 5
        for task in tasks[:7]:
            task.cancel()
        await asyncio.wait(tasks[:7])
        device.resume_reading()
        async with asyncio.timeout(10):
            here.check(texts(7, 100), await tasks[7])
        await until_free(pair)
        assert pair.link._asked == {}
        assert here.batcher.ledger.items == 0


class Switching(FakeEncoder):
    """Its other engine gives half of each feature."""

    choice = EAGER

    def engine(self, tower: Tower) -> EngineChoice:
        return self.choice

    def encode(self, tower: Tower, batch: Sequence[Prepared]) -> np.ndarray:
        rows = super().encode(tower, batch)
        return (rows * (1.0 if self.choice == EAGER else 0.5)).astype(np.float32)


class Preparing(FakeEncoder):
    """What a front end has of it."""

    engines: Engines = dict.fromkeys(Tower, EAGER)

    def engine(self, tower: Tower) -> EngineChoice:
        return self.engines[tower]

    def note_engines(self, engines: Engines) -> None:
        self.engines = engines


async def test_what_another_engine_gave_is_not_remembered_as_the_vectors_of_the_present_one() -> (
    None
):
    async with world() as w:
        encoder = Switching(dim=64)
        w.resident = Resident(version_id="v", model="default", encoder=encoder)
        pair = await w.pair()
        here = Resident(version_id="v", model="default", encoder=Preparing(dim=64))
        cache = FeatureCache(1 << 20)
        pipeline = EncodePipeline(pair.remote, ItemLimits(), 1, cache)
        pipeline.start()

        async def length(text: str) -> float:
            with Pin(w.residents, here) as pin:
                encoded = await pipeline.encode_items([EncodeItem(text=text)], pin, normalize=False)
            return round(float(np.linalg.norm(encoded.vectors[0])), 3)

        assert [await length("a"), await length("a")] == [1.0, 1.0]
        assert cache.figures.hits == 1
        encoder.choice = EngineChoice("torch", "bf16")
        assert await length("b") == 0.5  # and the front end hears of it
        assert [await length("a"), await length("a"), await length("b")] == [0.5, 0.5, 0.5]
        assert cache.figures.hits == 2
        pipeline.stop()
