"""What people chose: packing it, and what became of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

from hotclip._datasets import Dataset, dataset
from hotclip._encoding import OnError
from hotclip._jobs import when
from hotclip._message import made_under, unfit
from hotclip._status import item_errors, placed
from hotclip.errors import InvalidArgument, ItemError, ItemsFailed
from hotclip_proto.v1 import feedback_pb2

MAX_CHOICES = 1000


@dataclass(frozen=True)
class Choice:
    """Somebody searched with a text and took a point.

    `time` None means now; a naive one is local. Of the choices of a collection with the same
    `request_id` the first is kept; without one each is a choice of its own.
    """

    query: str
    point_id: str
    time: datetime | None = None
    request_id: str = ""


ChoiceLike: TypeAlias = "Choice | tuple[str, str] | tuple[str, str, datetime | None]"


@dataclass(frozen=True)
class Recorded:
    """How many choices were kept now, how many had been before, and which were not."""

    recorded: int
    known: int
    errors: tuple[ItemError, ...]


@dataclass(frozen=True)
class Unused:
    """Choices that make no pair: why, how many, and the first of their points.

    `reason` is DUPLICATE, POINT_GONE, POINT_CHANGED, NO_SOURCE, NOT_AN_IMAGE or IMAGE_UNFIT.
    """

    reason: str
    choices: int
    point_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FeedbackDataset:
    """Choices as a dataset: each is used, or counted with why it is not."""

    dataset: Dataset | None
    """None if it was only counted."""
    choices: int
    """Looked at."""
    used: int
    """Became a pair."""
    unused: tuple[Unused, ...]


def choice_of(value: object, where: str) -> feedback_pb2.Choice:
    """Packs a choice; what has no request id gets one, so that sending may be tried again."""
    if isinstance(value, tuple) and len(value) in (2, 3):
        value = Choice(*value)
    if not isinstance(value, Choice):
        raise InvalidArgument.field(where, "neither a Choice nor (query, point_id[, time])")
    for name in ("query", "point_id", "request_id"):
        if not isinstance(getattr(value, name), str):
            raise InvalidArgument.field(f"{where}.{name}", "not a string")
    packed = made_under(
        where,
        feedback_pb2.Choice,
        query=value.query,
        point_id=value.point_id,
        request_id=value.request_id or uuid.uuid4().hex,
    )
    if value.time is not None:
        _put_time(packed.time, value.time, f"{where}.time")
    return packed


@dataclass
class ChoiceBlock:
    """Choices of one request."""

    start: int
    """Position of the first."""
    choices: list[feedback_pb2.Choice] = field(default_factory=list)


def choice_blocks(choices: Iterable[object]) -> Iterator[ChoiceBlock]:
    """Cuts choices into requests."""
    block = ChoiceBlock(0)
    for at, value in enumerate(choices):
        block.choices.append(choice_of(value, f"choices[{at}]"))
        if len(block.choices) == MAX_CHOICES:
            yield block
            block = ChoiceBlock(at + 1)
    if block.choices:
        yield block


class RecordTally:
    """Adds up the answers to the parts of a recording."""

    def __init__(self, on_error: OnError) -> None:
        if on_error not in ("raise", "return"):
            raise InvalidArgument.field("on_error", f"{on_error!r} is no raise or return")
        self._on_error = on_error
        self._recorded = self._known = self._total = 0
        self._errors: list[ItemError] = []

    def add(self, block: ChoiceBlock, reply: feedback_pb2.RecordFeedbackResponse) -> None:
        """Takes the answer to a part."""
        self._recorded += reply.recorded
        self._known += reply.known
        self._total += len(block.choices)
        self._errors += [placed(e, e.index + block.start) for e in item_errors(reply.errors)]

    def result(self) -> Recorded:
        """What became of all; with "raise" raises ItemsFailed if some were bad."""
        if not self._total:
            raise InvalidArgument.field("choices", "empty list")
        errors = tuple(self._errors)
        if errors and self._on_error == "raise":
            raise ItemsFailed(errors, self._total, done=f"{self._recorded} were recorded")
        return Recorded(self._recorded, self._known, errors)


def window_of(start: datetime | None, end: datetime | None) -> feedback_pb2.FeedbackWindow:
    """A span of time; None does not bind."""
    window = feedback_pb2.FeedbackWindow()
    if start is not None:
        _put_time(window.start_time, start, "start")
    if end is not None:
        _put_time(window.end_time, end, "end")
    return window


def _put_time(stamp: Timestamp, told: object, field: str) -> None:
    if not isinstance(told, datetime):
        raise InvalidArgument.field(field, f"{told!r} is no datetime")
    try:
        stamp.FromDatetime(told.astimezone(UTC))
    except (ValueError, OverflowError) as error:
        raise unfit(field, told, error) from error


def choice(message: feedback_pb2.Choice) -> Choice:
    """Parses a choice."""
    return Choice(message.query, message.point_id, when(message.time), message.request_id)


def feedback_dataset(message: feedback_pb2.CreateFeedbackDatasetResponse) -> FeedbackDataset:
    """Parses what became of choices."""
    return FeedbackDataset(
        dataset=dataset(message.dataset) if message.HasField("dataset") else None,
        choices=message.choices,
        used=message.used,
        unused=tuple(Unused(u.reason, u.choices, tuple(u.point_ids)) for u in message.unused),
    )
