"""A front end's way to the batcher of the device process. No torch."""

from __future__ import annotations

import asyncio
import itertools
import mmap
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from hotclip_server.batching.ticket import Answer, Demand, Priority, Resident, Row
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.errors import HotclipError
from hotclip_server.frontends.arena import Area, ArenaSizes
from hotclip_server.frontends.frames import Frames, Kind
from hotclip_server.frontends.messages import (
    NOWHERE,
    Answered,
    Engines,
    Opening,
    pack_indices,
    pack_items,
    unpack_answer,
    unpack_failure,
    unpack_indices,
    unpack_part,
)

NUMBERS = 1 << 32
"""Of requests; then they begin anew, which a busy front end comes to within days."""
SMALL_ROWS = 16 << 10
"""Bytes; rows of less come in the answer itself."""


@runtime_checkable
class RunsElsewhere(Protocol):
    """An encoder that is told what runs its towers."""

    def note_engines(self, engines: Engines) -> None:
        """What runs each tower from here on."""


class Call:
    """A request that the device process decides about."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.place = NOWHERE
        self.known: dict[int, Row] = {}
        """Rows and errors that needed no device, by position in the request."""
        self.part = range(0)
        """What is admitted; items are put and settled by their index in it."""
        self.parts: asyncio.Queue[range | None] = asyncio.Queue()
        """Parts as they are admitted; None: there is an outcome."""
        self.outcome: Answered | HotclipError | None = None
        self.left = False
        """The caller went away."""

    @property
    def done(self) -> bool:
        """Nobody waits any more."""
        return self.left or self.outcome is not None


Feed = Callable[[Call, range], Awaitable[None]]


class RemoteBatcher:
    """Does for `EncodePipeline` what `Batcher` does in the device process, by asking that one.

    Args:
        frames: To the device process.
        memory: The arena.
        number_of: The number under which a version was announced.
    """

    def __init__(
        self,
        frames: Frames,
        memory: mmap.mmap,
        sizes: ArenaSizes,
        number_of: Callable[[Resident], int],
    ) -> None:
        self._frames = frames
        self._memory = memory
        self.items = Area(0, sizes.items)
        self.rows = Area(sizes.items, sizes.rows)
        self._number_of = number_of
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}

    async def run(
        self,
        resident: Resident,
        demands: Sequence[Demand],
        feed: Feed,
        *,
        deadline: float | None,
        priority: Priority,
    ) -> Answer:
        """See `Batcher.run`."""
        dim = resident.encoder.spec.dim
        call = Call(next(self._numbers) % NUMBERS)
        call.place = await self._place_for_rows(4 * dim * len(demands))
        self._calls[call.number] = call
        opening = Opening(
            number=call.number,
            version=self._number_of(resident),
            rows=call.place,
            deadline=deadline,
            priority=priority,
            demands=demands,
        )
        self._frames.send(Kind.OPEN, opening.pack())
        try:
            while (part := await call.parts.get()) is not None:
                call.part = part
                await feed(call, part)
        finally:
            if call.outcome is None:
                call.left = True
                self._frames.send(Kind.CANCEL, pack_indices(call.number, ()))
        if isinstance(call.outcome, Answered) and isinstance(resident.encoder, RunsElsewhere):
            resident.encoder.note_engines(call.outcome.engines)
        return self._answer(call, len(demands), dim)

    def put(self, call: Call, items: Iterable[tuple[int, Prepared]]) -> None:
        """See `Batcher.put`. Items wait here as long as the arena is full."""
        if call.done:
            return
        here = []
        for index, item in items:
            if item.tower is Tower.TEXT or not self.items.fits(item.nbytes):
                here.append((index, item, NOWHERE))
            else:
                self.items.reserve(item.nbytes, self._sender(call, index, item))
        if here:
            self._frames.send(Kind.ITEMS, pack_items(call.number, here))

    def settle(self, call: Call, index: int, row: Row) -> None:
        """See `Batcher.settle`."""
        if not call.done:
            call.known[call.part.start + index] = row
            self._frames.send(Kind.SETTLED, pack_indices(call.number, (index,)))

    def on_frame(self, kind: int, body: bytes) -> None:
        """Takes in what the device process says of requests."""
        if kind == Kind.FREE:
            for offset in unpack_indices(body)[1]:
                self.items.release(offset)
        elif kind == Kind.FEED:
            number, part = unpack_part(body)
            self._calls[number].parts.put_nowait(part)
        elif kind == Kind.ANSWER:
            self._end(*unpack_answer(body))
        elif kind == Kind.FAILED:
            self._end(*unpack_failure(body))
        else:
            raise ValueError(f"a frame of kind {kind}")

    def _end(self, number: int, outcome: Answered | HotclipError) -> None:
        call = self._calls.pop(number)
        call.outcome = outcome
        call.parts.put_nowait(None)
        if call.place != NOWHERE and (call.left or isinstance(outcome, HotclipError)):
            self.rows.release(call.place)

    async def _place_for_rows(self, nbytes: int) -> int:
        if nbytes < SMALL_ROWS or not self.rows.fits(nbytes):
            return NOWHERE
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def take(at: int) -> None:
            if place.done():  # the caller went away
                self.rows.release(at)
            else:
                place.set_result(at)

        self.rows.reserve(nbytes, take)
        try:
            return await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.rows.release(place.result())
            raise

    def _sender(self, call: Call, index: int, item: Prepared) -> Callable[[int], None]:
        def send(at: int) -> None:
            if call.done:
                self.items.release(at)
                return
            target = np.frombuffer(self._memory, np.uint8, item.nbytes, at)
            target.reshape(item.array.shape)[:] = item.array
            self._frames.send(Kind.ITEMS, pack_items(call.number, ((index, item, at),)))

        return send

    def _answer(self, call: Call, count: int, dim: int) -> Answer:
        outcome = call.outcome
        if isinstance(outcome, HotclipError):
            raise outcome
        if outcome is None:
            raise RuntimeError("a request ended without an outcome; this is a bug")
        rows: list[Row]
        if call.place == NOWHERE:
            rows = list(np.frombuffer(outcome.rows, np.float32).reshape(count, dim))
        else:
            shared = np.frombuffer(self._memory, np.float32, count * dim, call.place)
            rows = list(shared.reshape(count, dim).copy())
            self.rows.release(call.place)
        for known in (call.known, outcome.errors):
            for at, row in known.items():
                rows[at] = row
        return Answer(rows=rows, queue_s=outcome.queue_s, compute_s=outcome.compute_s)
