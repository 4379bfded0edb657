"""Encoding and ranking; methods of AsyncClient."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from hotclip import _encoding as plan
from hotclip._aio.connection import Connection
from hotclip._embeddings import Embeddings
from hotclip._encoding import Chunk, EncodePlan, OnError, PriorityName, ResizeName, TruncateName
from hotclip._inputs import Item
from hotclip._ranking import Ranking, rank_request, ranking
from hotclip._reconnect import Attempts
from hotclip._server import Limits
from hotclip._streaming import DEFAULT_BATCH, Encoded, Group, Window
from hotclip.errors import Cancelled, FailedPrecondition, NotFound, Unavailable

if TYPE_CHECKING:
    from hotclip._aio.client import AsyncClient


async def encode(
    self: AsyncClient,
    items: Item | Sequence[Item],
    *,
    model: str = "",
    version: str = "",
    expected_space_id: str = "",
    dtype: DTypeLike = np.float32,
    dimensions: int | None = None,
    normalize: bool = True,
    truncate: TruncateName = "end",
    priority: PriorityName = "interactive",
    on_error: OnError = "raise",
    resize: ResizeName = "server",
    timeout: float | None = None,
) -> Embeddings:
    """Vectors of texts and images, in order, wholly of one version.

    Args:
        items: One input or a list of them: str (always a text), bytes (an encoded JPEG,
            PNG or WebP), pathlib.Path (an image file), uint8 array (height, width, 3) RGB,
            PIL image, Text or Image. Long lists are split into several requests of one
            version.
        model: Name of a model; empty: "default".
        version: Id of a resident version; empty: the live one.
        expected_space_id: If set, the vectors must be of this space, after `dimensions`.
        dtype: float32, float16, int8 or "binary" (signs), on the wire and in the array; see
            Embeddings.
        dimensions: Keeps the first so many elements of each vector, at unit length again.
            Such vectors are of a space of their own, which `.space_id` names. None: all.
        normalize: False: vectors as the tower gives them, of any length.
        truncate: What becomes of texts longer than the model's context: "end" or "start" is
            cut off; with "none" they are bad items.
        priority: "bulk" is served behind "interactive".
        on_error: "raise" raises ItemsFailed if any item is bad; "return" gives it a zero
            row and lists it in `.errors`.
        resize: "client" resizes images here to the model's input where that makes them
            smaller, for thin links; see Image.resized. Needs the extra `image`.
        timeout: Seconds for the whole list; None: the client's default.

    Returns:
        Unit-length rows, (n, dim) for a list and (dim,) for one input, with `.version`,
        `.space_id`, `.errors` and `.timings`.

    Raises:
        ItemsFailed: Bad items, each named; with "return" only if none could be sent. An
            Image.resized for a version with other preprocessing is one; its reason is
            PREPROCESSING_CHANGED.
        InvalidArgument: Empty list, wrong type, bad pin; dimensions that are no int of at
            least 1, or more than there are.
        SpaceMismatch: expected_space_id is not resident.
        NotFound: No such model or version.
        Unavailable: Overload or no connection.
        DeadlineExceeded: The time was not enough.
    """
    told = plan.options(
        model=model,
        version=version,
        expected_space_id=expected_space_id,
        dtype=dtype,
        dimensions=dimensions,
        normalize=normalize,
        truncate=truncate,
        priority=priority,
        on_error=on_error,
        resize=resize,
    )
    connection = self._connection
    deadline = connection.deadline(timeout)
    info = await connection.info(deadline)
    todo = EncodePlan(items, told, info.limits, plan.preprocessing_of(told, info))
    while True:
        try:
            async for chunk in connection.pull(todo.chunks(), blocking=todo.reads):
                stub = connection.stubs().encode
                reply = await connection.call(stub.Encode, todo.request(chunk), deadline)
                todo.add(chunk, reply)
            return todo.result()
        except (NotFound, FailedPrecondition) as error:
            todo.restart(error)
            if told.resize:
                info = await connection.info(deadline, fresh=True)
                todo.resize = plan.preprocessing_of(told, info, todo.answered_by)


def encode_stream(
    self: AsyncClient,
    items: Iterable[Item] | AsyncIterable[Item],
    *,
    model: str = "",
    version: str = "",
    expected_space_id: str = "",
    dtype: DTypeLike = np.float32,
    dimensions: int | None = None,
    normalize: bool = True,
    truncate: TruncateName = "end",
    priority: PriorityName = "bulk",
    on_error: OnError = "raise",
    resize: ResizeName = "server",
    batch_size: int = DEFAULT_BATCH,
) -> AsyncIterator[Encoded]:
    """Vectors of an iterator of any length, in order, with bounded memory.

    Items are taken only as fast as answers come. A broken connection is made again and
    what is unanswered is sent again. There is no deadline: closing the generator (or
    leaving its loop) cancels the call.

    Args:
        items: As in encode; taken on the caller's thread.
        model: Name of a model; empty: "default".
        version: Id of a resident version; empty: the live one, for each request anew.
        expected_space_id: If set, every vector must be of this space.
        dtype: As in encode, as are dimensions, normalize and truncate.
        dimensions: Elements that are kept; None: all.
        normalize: Whether vectors have unit length.
        truncate: Of long texts.
        priority: "bulk" is served behind "interactive".
        on_error: "raise" raises ItemsFailed at the first bad item; "return" yields it with
            `.error` set.
        resize: As in encode. If the model is replaced by one with other preprocessing, the
            images after that fail with reason PREPROCESSING_CHANGED.
        batch_size: Items in one request of the stream.

    Yields:
        Encoded: index, vector (dim,), version and space_id of each item.

    Raises:
        As encode, while iterating.
    """
    told = plan.options(
        model=model,
        version=version,
        expected_space_id=expected_space_id,
        dtype=dtype,
        dimensions=dimensions,
        normalize=normalize,
        truncate=truncate,
        priority=priority,
        on_error=on_error,
        resize=resize,
    )
    return _encode_stream(self, items, told, Group(batch_size))


async def _encode_stream(
    self: AsyncClient, items: Iterable[Item] | AsyncIterable[Item], told: plan.Options, group: Group
) -> AsyncIterator[Encoded]:
    connection = self._connection
    window, attempts = Window(told), Attempts()
    info = await connection.info(connection.deadline(None), fresh=told.resize)
    group.resize = plan.preprocessing_of(told, info)
    source = _chunks(connection, items, group, info.limits)
    chunk = await anext(source, None)
    while chunk or not window.empty:
        async with connection.duplex(connection.stubs().encode.EncodeStream) as link:
            for request in window.unanswered():
                await link.send(request)
            while chunk or not window.empty:
                while chunk and window.room:
                    if fresh := window.add(chunk):
                        await link.send(fresh)
                    chunk = await anext(source, None)
                for encoded in window.ready():
                    yield encoded
                if window.empty:
                    continue
                try:
                    reply = await link.receive()
                    if reply is None:
                        pause = attempts.ended()
                        break
                    answered = list(window.accept(reply))
                except (Unavailable, Cancelled) as error:
                    pause = attempts.pause(error)
                    break
                if answered:
                    attempts.progressed()
                for encoded in answered:
                    yield encoded
            else:
                link.done_sending()
                return
        await connection.sleep(pause)


async def _chunks(
    connection: Connection,
    items: Iterable[Item] | AsyncIterable[Item],
    group: Group,
    limits: Limits,
) -> AsyncIterator[Chunk]:
    async for item in connection.each(items):
        if group.add(item):
            async for chunk in connection.pull(group.chunks(limits), blocking=group.reads):
                yield chunk
    async for chunk in connection.pull(group.chunks(limits), blocking=group.reads):
        yield chunk


async def rank(
    self: AsyncClient,
    query: Item,
    candidates: Sequence[Item],
    *,
    model: str = "",
    version: str = "",
    expected_space_id: str = "",
    truncate: TruncateName = "end",
    priority: PriorityName = "interactive",
    timeout: float | None = None,
) -> Ranking:
    """Scores texts against an image, images against a text, or like against like.

    Args:
        query: What to compare with; as an item of encode.
        candidates: At most as many as one request may hold (1,024 by default).
        model: Name of a model; empty: "default".
        version: Id of a resident version; empty: the live one.
        expected_space_id: If set, the version must be of this space.
        truncate: Of texts longer than the model's context; as in encode.
        priority: "bulk" is served behind "interactive".
        timeout: Seconds; None: the client's default.

    Returns:
        Scores by falling cosine: cosine in [-1, 1], and probability, the softmax of
        cosine * logit scale over the candidates.

    Raises:
        InvalidArgument: A bad query or candidate.
        NotFound: No such model or version.
    """
    connection = self._connection
    deadline = connection.deadline(timeout)
    request = await connection.run(
        partial(
            rank_request,
            query,
            candidates,
            model=model,
            version=version,
            expected_space_id=expected_space_id,
            truncate=truncate,
            priority=priority,
        )
    )
    return ranking(await connection.call(connection.stubs().encode.Rank, request, deadline))
