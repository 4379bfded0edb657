"""From items of a request to vectors: check, prepare on the CPU pool, batch, pack.

Encode, EncodeStream, Rank, Search, Upsert and Reindex all go through `encode_items`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.batching.cache import FeatureCache
from hotclip_server.batching.ticket import Answer, Demand, Priority, Resident, Row
from hotclip_server.contents import (
    Content,
    Made,
    content_of,
    demand_of,
    known_features,
    prepare_contents,
    tower_of,
)
from hotclip_server.encoding.engines.protocol import EngineChoice
from hotclip_server.encoding.features import unit_rows
from hotclip_server.encoding.protocol import Encoder, Prepared, Tower, Truncate
from hotclip_server.errors import (
    FieldViolation,
    HotclipError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from hotclip_server.models.residents import Pin
from hotclip_server.preparing import NOTHING, Booking, PrepareLoad
from hotclip_server.turns import SHORT_S, Turns

TEXTS_PER_TASK = 32
"""Texts that one pool task tokenises: about a millisecond of work. Images go one by one."""

REFUSED_FOR_LOAD = ("QUEUE_FULL", "WAIT_TOO_LONG")
MOST_BYTES_TO_LOOK = 256 << 10
"""Of a refused request whose items are looked for, on the event loop: 0.3 ms. Who is refused is
refused at once."""


@dataclass(frozen=True, kw_only=True)
class ItemLimits:
    """What a request may hold."""

    max_items: int = 1024
    max_text_bytes: int = 8 << 10
    max_image_bytes: int = 20 << 20


class Waiting(Protocol):
    """A request, or a part of it, that was admitted."""

    @property
    def done(self) -> bool:
        """Nobody waits any more."""


class Batches(Protocol):
    """Admits requests and runs their items: `Batcher`, or what stands for it in another process.

    Its requests are what its own `run` gave, whatever that is.
    """

    async def run(
        self,
        resident: Resident,
        demands: Sequence[Demand],
        feed: Callable[[Any, range], Awaitable[None]],
        *,
        deadline: float | None,
        priority: Priority,
    ) -> Answer:
        """See `Batcher.run`."""

    def put(self, ticket: Any, items: Iterable[tuple[int, Prepared]]) -> None:
        """See `Batcher.put`."""

    def settle(self, ticket: Any, index: int, row: Row) -> None:
        """See `Batcher.settle`."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What came of a request.

    vectors: float32 of shape (items, dim), unit rows unless raw features were asked for; rows of
        failed items are zero.
    errors: Failed items by position.
    preprocess_us: Decoding, resizing, tokenising: microseconds summed over items.
    queue_us: The longest that an item waited for its batch to begin, after it was prepared.
    compute_us: Of the batches that its items ran in, each counted once.
    """

    vectors: NDArray[np.float32]
    errors: dict[int, HotclipError]
    preprocess_us: int
    queue_us: int
    compute_us: int


@dataclass(slots=True)
class _Work:
    """A request while it is prepared."""

    encoder: Encoder
    contents: Sequence[Content]
    truncate: Truncate
    priority: Priority
    engines: Mapping[Tower, EngineChoice]
    booking: Booking = NOTHING
    missed: dict[int, bytes] = field(default_factory=dict)
    """Keys of items that are to be remembered, by position."""
    spent_s: float = 0.0
    """Of all threads."""


class EncodePipeline:
    """Prepares items on a pool of threads and hands them to the batcher.

    Args:
        batcher: Takes prepared items.
        limits: Of a request.
        threads: Size of the pool; 0: one a core.
        cache: Remembers features; None: nothing is remembered.
    """

    def __init__(
        self,
        batcher: Batches,
        limits: ItemLimits,
        threads: int = 0,
        cache: FeatureCache | None = None,
    ) -> None:
        self._batcher = batcher
        self._cache = cache if cache is not None and cache.enabled else None
        self.limits = limits
        self._threads = threads or os.cpu_count() or 1
        self._pool: ThreadPoolExecutor | None = None
        self._turns = Turns(self._threads)
        self._in_line = self._threads + 1
        """Tasks of a request that wait or run at a time."""
        self._load = PrepareLoad(self._threads, self._in_line)

    def start(self) -> None:
        """Makes the pool."""
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="hotclip-prepare")

    def stop(self) -> None:
        """Drops what is not begun; running tasks end by themselves."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    async def encode_items(
        self,
        items: Sequence[EncodeItem],
        pin: Pin,
        *,
        deadline: float | None = None,
        priority: Priority = Priority.INTERACTIVE,
        truncate: Truncate = Truncate.END,
        normalize: bool = True,
        field: str = "items",
        remember: bool = True,
    ) -> Encoded:
        """Encodes texts and images with one version.

        Args:
            items: 1 to max_items.
            pin: Held by the caller until the answer.
            deadline: On time.monotonic; None: none.
            priority: Class of every item.
            truncate: Of texts that are longer than the context.
            normalize: Divides each vector by its norm; else features as the tower gives them.
            field: Path of the list in the request, for errors of the request as a whole.
            remember: Whether the cache may take features of these items.

        Raises:
            InvalidArgument: no items, or one without content.
            ResourceExhausted: too many items.
            Unavailable: the queue is full or the request would be late because of others, and not
                every item is remembered; or the server is stopping.
            DeadlineExceeded: the deadline passed first.
        """
        contents = self._contents(items, field)
        encoder = pin.resident.encoder
        problems = {
            index: problem
            for index, content in enumerate(contents)
            if (problem := self._problem(content)) is not None
        }
        # While engines are measured another may be put in place: remembered features are looked
        # for, and kept, as those of one engine a tower.
        engines = {tower: encoder.engine(tower) for tower in Tower}
        work = _Work(encoder, contents, truncate, priority, engines)

        async def feed(ticket: Waiting, part: range) -> None:
            for at in part:
                if at in problems:
                    self._batcher.settle(ticket, at - part.start, problems[at])
            good = [at for at in part if at not in problems]
            await self._prepare(ticket, work, good, part.start)

        demands = [demand_of(content, encoder) for content in contents]
        try:
            with self._load.booked(contents, priority, deadline) as work.booking:
                answer = await self._batcher.run(
                    pin.resident, demands, feed, deadline=deadline, priority=priority
                )
        except Unavailable as refusal:
            quick = sum(item.ByteSize() for item in items) <= MOST_BYTES_TO_LOOK
            if refusal.reason not in REFUSED_FOR_LOAD or problems or not quick:
                raise
            rows = self._known(encoder, contents, truncate, engines)
            if rows is None:
                raise
            answer = Answer(rows=rows, queue_s=0.0, compute_s=0.0)
        same = {tower for tower in Tower if encoder.engine(tower) == engines[tower]}
        missed = {at: key for at, key in work.missed.items() if tower_of(contents[at]) in same}
        if remember:
            self._remember(encoder, missed, answer.rows)
        vectors, errors = _assemble(answer.rows, encoder.spec.dim)
        if normalize:
            vectors = unit_rows(vectors)
        return Encoded(
            vectors,
            errors,
            preprocess_us=round(1e6 * work.spent_s),
            queue_us=round(1e6 * answer.queue_s),
            compute_us=round(1e6 * answer.compute_s),
        )

    async def _prepare(
        self, ticket: Waiting, work: _Work, positions: Sequence[int], start: int
    ) -> None:
        """Prepares items a few tasks at a time, so that one long request leaves the pool to
        others between two of its tasks."""
        tasks = _tasks(work.contents, positions)

        async def prepare() -> None:
            for task in tasks:
                if ticket.done:
                    return
                made = await self._run(work, task)
                good = []
                for at, item in zip(task, made, strict=True):
                    if isinstance(item.result, Prepared):
                        good.append((at - start, item.result))
                        work.missed[at] = item.key
                        continue
                    if self._cache is not None and not isinstance(item.result, HotclipError):
                        self._cache.used(work.encoder, item.key)
                    self._batcher.settle(ticket, at - start, item.result)
                self._batcher.put(ticket, good)

        if len(positions) <= 1:
            await prepare()
        else:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(positions), self._in_line)):
                    group.create_task(prepare())

    def _known(
        self,
        encoder: Encoder,
        contents: Sequence[Content],
        truncate: Truncate,
        engines: Mapping[Tower, EngineChoice],
    ) -> list[Row] | None:
        """The rows of a request that needs no device."""
        if self._cache is None:
            return None
        known = known_features(encoder, contents, truncate, engines, self._cache)
        if known is None:
            return None
        for key, _ in known:
            self._cache.used(encoder, key)
        return [row for _, row in known]

    def _remember(self, encoder: Encoder, missed: dict[int, bytes], rows: Sequence[Row]) -> None:
        if self._cache is None:
            return
        for at, key in missed.items():
            row = rows[at]
            if not isinstance(row, HotclipError):
                self._cache.put(encoder, key, row)

    async def _run(self, work: _Work, task: Sequence[int]) -> list[Made]:
        short = work.booking.predicted_s(task) <= SHORT_S
        await self._turns.take(work.priority, short=short)
        try:
            if self._pool is None:
                raise RuntimeError("the pipeline is not started; this is a bug")
            made, seconds = await asyncio.get_running_loop().run_in_executor(
                self._pool,
                prepare_contents,
                work.encoder,
                [work.contents[at] for at in task],
                work.truncate,
                work.engines,
                self._cache,
            )
        finally:
            self._turns.give_back()
        work.spent_s += seconds
        self._load.done(work.booking, work.priority, task, seconds)
        return made

    def _contents(self, items: Sequence[EncodeItem], field: str) -> list[Content]:
        if not items:
            raise InvalidArgument.field(field, "must hold at least one item")
        if len(items) > self.limits.max_items:
            raise ResourceExhausted(
                f"{field}: {len(items)} items, at most {self.limits.max_items} are allowed",
                reason="TOO_MANY_ITEMS",
            )
        contents = [content_of(item) for item in items]
        empty = [
            FieldViolation(f"{field}[{index}]", "must hold a text, an image or a tensor")
            for index, content in enumerate(contents)
            if content is None
        ]
        if empty:
            raise InvalidArgument.fields(empty)
        return [content for content in contents if content is not None]

    def _problem(self, content: Content) -> InvalidArgument | None:
        # Which item it is goes with the error: `items` may be a part of the caller's list.
        if isinstance(content, str):
            # A code point has at most 4 bytes; only long texts need counting.
            most = self.limits.max_text_bytes
            if 4 * len(content) > most and len(content.encode()) > most:
                return InvalidArgument.field(
                    "text", f"longer than {most} bytes", reason="TEXT_TOO_LONG"
                )
            if not content:
                return InvalidArgument.field("text", "empty", reason="TEXT_EMPTY")
        elif isinstance(content, bytes):
            most = self.limits.max_image_bytes
            if len(content) > most:
                return InvalidArgument.field(
                    "image",
                    f"{len(content)} bytes, at most {most} are allowed",
                    reason="IMAGE_TOO_LARGE",
                )
            if not content:
                return InvalidArgument.field("image", "empty", reason="IMAGE_UNREADABLE")
        return None


def _tasks(contents: Sequence[Content], positions: Sequence[int]) -> Iterator[list[int]]:
    texts: list[int] = []
    for at in positions:
        if not isinstance(contents[at], str):
            yield [at]
            continue
        texts.append(at)
        if len(texts) == TEXTS_PER_TASK:
            yield texts
            texts = []
    if texts:
        yield texts


def _assemble(rows: Sequence[Row], dim: int) -> tuple[NDArray[np.float32], dict[int, HotclipError]]:
    vectors = np.zeros((len(rows), dim), np.float32)
    errors: dict[int, HotclipError] = {}
    for index, row in enumerate(rows):
        if isinstance(row, HotclipError):
            errors[index] = row
        else:
            vectors[index] = row
    return vectors, errors
