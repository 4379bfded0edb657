"""What people chose, to learn from; methods of AsyncClient."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from hotclip import _feedback as parse
from hotclip._encoding import OnError
from hotclip._feedback import Choice, ChoiceLike, FeedbackDataset, Recorded, RecordTally
from hotclip._message import made
from hotclip_proto.v1 import feedback_pb2

if TYPE_CHECKING:
    from hotclip._aio.client import AsyncClient


async def record_feedback(
    self: AsyncClient,
    collection: str,
    choices: Iterable[ChoiceLike],
    *,
    on_error: OnError = "raise",
    timeout: float | None = None,
) -> Recorded:
    """Keeps what people searched with and which point they took; durable when it returns.

    Args:
        collection: Its name.
        choices: Choice objects or (query, point_id[, time]) tuples. Long lists are sent in
            parts.
        on_error: "raise" raises ItemsFailed if a choice is bad, after all the others were
            kept; "return" lists them in `.errors`.
        timeout: Seconds for all choices; None: the client's default.

    Raises:
        ItemsFailed: Bad choices, each named; the others are kept.
        NotFound: No such collection.
        ResourceExhausted: The server keeps no more (reason FEEDBACK_FULL).
    """
    connection = self._connection
    deadline = connection.deadline(timeout)
    tally = RecordTally(on_error)
    for block in parse.choice_blocks(choices):
        request = made(
            feedback_pb2.RecordFeedbackRequest, collection=collection, choices=block.choices
        )
        stub = connection.stubs().feedback
        tally.add(block, await connection.call(stub.RecordFeedback, request, deadline))
    return tally.result()


async def list_feedback(
    self: AsyncClient,
    collection: str,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    timeout: float | None = None,
) -> list[Choice]:
    """The choices that are kept, newest first.

    Args:
        collection: Its name.
        start: From then on; None: from the first.
        end: Before then; None: to the last.
        timeout: Seconds; None: the client's default.

    Raises:
        NotFound: No such collection.
    """
    connection, found, token = self._connection, list[Choice](), ""
    deadline = connection.deadline(timeout)
    while True:
        request = made(
            feedback_pb2.ListFeedbackRequest,
            collection=collection,
            window=parse.window_of(start, end),
            page_token=token,
        )
        stub = connection.stubs().feedback
        reply = await connection.call(stub.ListFeedback, request, deadline)
        found += map(parse.choice, reply.choices)
        token = reply.next_page_token
        if not token:
            return found


async def delete_feedback(
    self: AsyncClient,
    collection: str,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    timeout: float | None = None,
) -> int:
    """Forgets choices; gives how many.

    Args:
        collection: Its name.
        start: From then on; None: from the first.
        end: Before then; None: to the last.
        timeout: Seconds; None: the client's default.

    Raises:
        NotFound: No such collection.
    """
    connection = self._connection
    request = made(
        feedback_pb2.DeleteFeedbackRequest,
        collection=collection,
        window=parse.window_of(start, end),
    )
    stub = connection.stubs().feedback
    reply = await connection.call(stub.DeleteFeedback, request, connection.deadline(timeout))
    return reply.deleted


async def feedback_dataset(
    self: AsyncClient,
    collection: str,
    *,
    name: str = "",
    description: str = "",
    start: datetime | None = None,
    end: datetime | None = None,
    max_choices: int | None = None,
    validate_only: bool = False,
    timeout: float | None = None,
) -> FeedbackDataset:
    """Makes a dataset of choices: each text with the image of the point that was taken.

    Train on it with `finetune(made.dataset.id)`.

    Args:
        collection: Its name.
        name: Of the dataset; empty: its id.
        description: Free text.
        start: From then on; None: from the first.
        end: Before then; None: to the last.
        max_choices: The newest so many are looked at, 1 to 1,000,000; None: 100,000.
        validate_only: Count what could be used, make nothing.
        timeout: Seconds; None: the client's default. Each image is decoded once.

    Raises:
        NotFound: No such collection.
        FailedPrecondition: No choice makes a pair (reason FEEDBACK_UNUSABLE).
        AlreadyExists: The name belongs to other content, or the content to another name.
    """
    connection = self._connection
    request = made(
        feedback_pb2.CreateFeedbackDatasetRequest,
        collection=collection,
        window=parse.window_of(start, end),
        name=name,
        description=description,
        max_choices=max_choices,
        validate_only=validate_only,
    )
    stub = connection.stubs().feedback
    reply = await connection.call(stub.CreateFeedbackDataset, request, connection.deadline(timeout))
    return parse.feedback_dataset(reply)
