"""From items of a request to vectors: check, prepare on the CPU pool, batch, pack.

Encode, EncodeStream, Rank, Search, Upsert and Reindex all go through `encode_items`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1.types_pb2 import EncodeItem, ImageTensor
from hotclip_server.batching.batcher import Batcher
from hotclip_server.batching.isolate import EncodeFailed
from hotclip_server.batching.ticket import Demand, Priority, Row, Ticket
from hotclip_server.encoding.features import unit_rows
from hotclip_server.encoding.protocol import Encoder, Prepared, Tower, Truncate
from hotclip_server.errors import (
    FailedPrecondition,
    FieldViolation,
    HotclipError,
    InvalidArgument,
    ResourceExhausted,
)
from hotclip_server.models.residents import Pin

log = logging.getLogger(__name__)

Content = str | bytes | ImageTensor
"""A text, an encoded image, or pixels."""

BYTES_PER_TOKEN = 4
"""Of a text, about: English has 4 to 5, Chinese 3."""
TEXTS_PER_TASK = 32
"""Texts that one pool task tokenises: about a millisecond of work. Images go one by one."""


@dataclass(frozen=True, kw_only=True)
class ItemLimits:
    """What a request may hold."""

    max_items: int = 1024
    max_text_bytes: int = 8 << 10
    max_image_bytes: int = 20 << 20


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


class EncodePipeline:
    """Prepares items on a pool of threads and hands them to the batcher.

    Args:
        batcher: Takes prepared items.
        limits: Of a request.
        threads: Size of the pool; 0: one a core.
    """

    def __init__(self, batcher: Batcher, limits: ItemLimits, threads: int = 0) -> None:
        self._batcher = batcher
        self.limits = limits
        self._threads = threads or os.cpu_count() or 1
        self._pool: ThreadPoolExecutor | None = None

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

        Raises:
            InvalidArgument: no items, or one without content.
            ResourceExhausted: too many items.
            Unavailable: the queue is full, or the server is stopping.
            DeadlineExceeded: the deadline passed first.
        """
        contents = self._contents(items, field)
        encoder = pin.resident.encoder
        problems = {
            index: problem
            for index, content in enumerate(contents)
            if (problem := self._problem(content)) is not None
        }
        spent = [0.0]

        async def feed(ticket: Ticket, part: range) -> None:
            for at in part:
                if at in problems:
                    self._batcher.settle(ticket, at - part.start, problems[at])
            good = [at for at in part if at not in problems]
            spent[0] += await self._prepare(ticket, encoder, truncate, contents, good, part.start)

        demands = [demand_of(content, encoder) for content in contents]
        answer = await self._batcher.run(
            pin.resident, demands, feed, deadline=deadline, priority=priority
        )
        vectors, errors = _assemble(answer.rows, encoder.spec.dim)
        if normalize:
            vectors = unit_rows(vectors)
        return Encoded(
            vectors,
            errors,
            preprocess_us=round(1e6 * spent[0]),
            queue_us=round(1e6 * answer.queue_s),
            compute_us=round(1e6 * answer.compute_s),
        )

    async def _prepare(
        self,
        ticket: Ticket,
        encoder: Encoder,
        truncate: Truncate,
        contents: Sequence[Content],
        positions: Sequence[int],
        start: int,
    ) -> float:
        """Prepares items a few tasks at a time, so that one long request leaves the pool to
        others between two of its tasks. Gives the seconds spent."""
        tasks = _tasks(contents, positions)
        spent = 0.0

        async def work() -> None:
            nonlocal spent
            for task in tasks:
                if ticket.done:
                    return
                made, seconds = await self._run(
                    lambda task=task: prepare_contents(  # type: ignore[misc]
                        encoder, [contents[at] for at in task], truncate
                    )
                )
                spent += seconds
                good = []
                for at, result in zip(task, made, strict=True):
                    if isinstance(result, HotclipError):
                        self._batcher.settle(ticket, at - start, result)
                    else:
                        good.append((at - start, result))
                self._batcher.put(ticket, good)

        if len(positions) <= 1:
            await work()
        else:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(positions), self._threads + 1)):
                    group.create_task(work())
        return spent

    async def _run(
        self, work: Callable[[], tuple[list[Prepared | HotclipError], float]]
    ) -> tuple[list[Prepared | HotclipError], float]:
        if self._pool is None:
            raise RuntimeError("the pipeline is not started; this is a bug")
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

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


def content_of(item: EncodeItem) -> Content | None:
    """What an item holds, copied once: each look at a field of a message copies it anew."""
    match item.WhichOneof("content"):
        case "text":
            return item.text
        case "image":
            return item.image
        case "tensor":
            return item.tensor
        case _:
            return None


def prepare_contents(
    encoder: Encoder, contents: Sequence[Content], truncate: Truncate = Truncate.END
) -> tuple[list[Prepared | HotclipError], float]:
    """Decodes and tokenises on the calling thread; a bad item fails alone.

    Returns:
        One prepared item or error each, and the seconds that it took.
    """
    started = time.perf_counter()
    made: list[Prepared | HotclipError] = []
    for content in contents:
        try:
            made.append(_prepare_content(encoder, content, truncate))
        except HotclipError as error:
            made.append(error)
        except Exception:
            # A decoder's own fault is this item's answer; the others of the request go on.
            log.exception("preparing one item (%s) failed", type(content).__name__)
            made.append(EncodeFailed("preparing this item failed", reason="PREPARE_FAILED"))
    return made, time.perf_counter() - started


def _prepare_content(encoder: Encoder, content: Content, truncate: Truncate) -> Prepared:
    if isinstance(content, str):
        return encoder.prepare_text(content, truncate)
    if isinstance(content, bytes):
        return encoder.prepare_image(content)
    made_for = content.preprocessing_id
    if made_for and made_for != encoder.image_preprocessing.id:
        raise FailedPrecondition(
            "tensor: made as another version preprocesses images", reason="PREPROCESSING_CHANGED"
        )
    return encoder.prepare_tensor(content.data, content.height, content.width)


def demand_of(content: Content, encoder: Encoder) -> Demand:
    """What an item will take: bytes as it came and prepared, and its length, which of a text is
    a guess."""
    if isinstance(content, str):
        context = encoder.spec.context_length
        length = min(context, 2 + len(content.encode()) // BYTES_PER_TOKEN)
        return Demand(Tower.TEXT, length, len(content) + 8 * context)
    pixels = 3 * encoder.spec.image_size**2
    # A tensor that is not of this size is refused when it is prepared.
    held = len(content) if isinstance(content, bytes) else pixels
    return Demand(Tower.VISION, 1, pixels + held)


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
