"""The device process's side of one front end: its requests, its shared memory, its versions."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import mmap
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotclip_server.batching.batcher import Batcher
from hotclip_server.batching.ticket import Answer, Row, Ticket
from hotclip_server.boundary import internal_error
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.errors import HotclipError
from hotclip_server.frontends.copies import Copy
from hotclip_server.frontends.frames import Frames, Kind
from hotclip_server.frontends.messages import (
    NOWHERE,
    Opening,
    pack_answer,
    pack_failure,
    pack_indices,
    pack_part,
    unpack_indices,
    unpack_items,
)
from hotclip_server.models.residents import Pin, Resident

log = logging.getLogger(__name__)

ELSEWHERE = HotclipError("the front end knows what came of this item")


class Asked:
    """A request of a front end."""

    def __init__(self) -> None:
        self.ticket: Ticket | None = None
        self.task: asyncio.Task[None] | None = None


class Link:
    """One front end, from its start to its end. Event loop only.

    Args:
        batcher: Admits and runs what it asks for.
        memory: The arena.
        on_told: Called with what it says about itself.
        on_lost: Called when it is gone.
        on_copy: Called with answered requests that it hands over.
    """

    def __init__(
        self,
        batcher: Batcher,
        memory: mmap.mmap,
        on_told: Callable[[dict[str, Any]], None],
        on_lost: Callable[[], None],
        on_copy: Callable[[Copy], None],
    ) -> None:
        self._batcher = batcher
        self._memory = memory
        self._on_told = on_told
        self._on_lost = on_lost
        self._on_copy = on_copy
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, Asked] = {}
        self._freed: deque[int] = deque()
        self._telling = False
        self._numbers = itertools.count(1)
        self._lent: dict[int, Pin] = {}
        self.present: dict[Resident, int] = {}
        """Numbers of versions that it may pin, or that it is about to load."""
        self.frames = Frames(self._on_frame, self._lost)
        self.gone = False

    def lend(self, pin: Pin) -> int:
        """From now on it may pin a version, which stays until it gives it back."""
        number = next(self._numbers)
        self._lent[number] = pin
        self.present[pin.resident] = number
        return number

    def take_back(self, resident: Resident) -> int:
        """It may not pin a version any more; gives its number."""
        return self.present.pop(resident)

    def close(self) -> None:
        """Says nothing more to it."""
        self.frames.close()

    def _on_frame(self, kind: int, body: bytes) -> None:
        if kind == Kind.ITEMS:
            number, items = unpack_items(body, self._look)
            self._put(number, items)
        elif kind == Kind.OPEN:
            self._open(Opening.unpack(body))
        elif kind == Kind.SETTLED:
            number, indices = unpack_indices(body)
            asked = self._asked.get(number)
            for index in indices:
                if asked is not None and asked.ticket is not None:
                    self._batcher.settle(asked.ticket, index, ELSEWHERE)
        elif kind == Kind.COPY:
            self._on_copy(Copy.unpack(body))
        elif kind == Kind.CANCEL:
            number, _ = unpack_indices(body)
            asked = self._asked.get(number)
            if asked is not None and asked.task is not None:
                asked.task.cancel()
        else:
            told = json.loads(body)
            if told["what"] == "dropped":
                self._lent.pop(told["number"]).release()
            else:
                self._on_told(told)

    def _put(self, number: int, items: list[tuple[int, Prepared]]) -> None:
        asked = self._asked.get(number)
        if asked is not None and asked.ticket is not None:
            self._batcher.put(asked.ticket, items)

    def _open(self, opening: Opening) -> None:
        asked = self._asked[opening.number] = Asked()
        asked.task = self._loop.create_task(
            self._answer(opening, asked), name="hotclip-frontend-request"
        )
        asked.task.add_done_callback(partial(self._ended, opening.number))

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        """Also if it was cancelled in the turn of the loop in which it came: then no line of
        `_answer` ran."""
        del self._asked[number]
        if task.cancelled() and not self.gone:
            # Nobody waits; its rows are free when it hears of the end.
            self.frames.send(Kind.FAILED, pack_failure(number, HotclipError("cancelled")))

    async def _answer(self, opening: Opening, asked: Asked) -> None:
        number = opening.number

        async def feed(ticket: Ticket, part: range) -> None:
            asked.ticket = ticket
            self.frames.send(Kind.FEED, pack_part(number, part))

        failure: HotclipError | None = None
        try:
            answer = await self._batcher.run(
                self._lent[opening.version].resident,
                opening.demands,
                feed,
                deadline=opening.deadline,
                priority=opening.priority,
            )
            self._send(opening, answer)
        except HotclipError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - told to the caller, who waits for it
            failure = internal_error("a request of a front end", error)
        if failure is not None and not self.gone:
            self.frames.send(Kind.FAILED, pack_failure(number, failure))

    def _send(self, opening: Opening, answer: Answer) -> None:
        rows = answer.rows
        errors = {
            at: row
            for at, row in enumerate(rows)
            if isinstance(row, HotclipError) and row is not ELSEWHERE
        }
        resident = self._lent[opening.version].resident
        dim = resident.spec.dim
        inline = b""
        if opening.rows == NOWHERE:
            matrix = np.zeros((len(rows), dim), np.float32)
            _fill(matrix, rows)
            inline = matrix.tobytes()
        else:
            matrix = np.frombuffer(self._memory, np.float32, len(rows) * dim, opening.rows).reshape(
                -1, dim
            )
            _fill(matrix, rows)
        engines = {tower: resident.encoder.engine(tower) for tower in Tower}
        times = (answer.queue_s, answer.compute_s)
        self.frames.send(Kind.ANSWER, pack_answer(opening.number, *times, engines, errors, inline))

    def _look(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        array = np.frombuffer(self._memory, np.uint8, nbytes, offset)
        array.flags.writeable = False
        # Whoever needs it has it: the queue, a batch, or another request for the same.
        weakref.finalize(array, self._unused, offset).atexit = False
        return array

    def _unused(self, offset: int) -> None:
        """On whichever thread let go last."""
        self._freed.append(offset)
        if not self._telling and not self._loop.is_closed():
            self._telling = True
            self._loop.call_soon_threadsafe(self._tell_free)

    def _tell_free(self) -> None:
        self._telling = False  # first: what is added from here on is told now or the next time
        freed = [self._freed.popleft() for _ in range(len(self._freed))]
        if freed and not self.gone:
            self.frames.send(Kind.FREE, pack_indices(0, freed))

    def _lost(self, error: Exception | None) -> None:
        if error is not None and not isinstance(error, ConnectionError):
            log.error("a front end and the server do not understand each other", exc_info=error)
        self.gone = True
        for asked in list(self._asked.values()):
            if asked.task is not None:
                asked.task.cancel()
        self.present.clear()
        for pin in self._lent.values():
            pin.release()
        self._on_lost()


def _fill(matrix: NDArray[np.float32], rows: Sequence[Row]) -> None:
    arrays = [row for row in rows if not isinstance(row, HotclipError)]
    if len(arrays) == len(rows):
        np.stack(arrays, out=matrix)
        return
    for at, row in enumerate(rows):
        if not isinstance(row, HotclipError):
            matrix[at] = row
