"""FeedbackService: the wire side of choices."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from hotclip_proto.v1 import feedback_pb2, feedback_pb2_grpc
from hotclip_server.errors import FieldViolation, InvalidArgument
from hotclip_server.feedback.datasets import (
    DEFAULT_CHOICES,
    MOST_CHOICES,
    FeedbackDatasets,
    Tally,
)
from hotclip_server.feedback.log import FeedbackLog
from hotclip_server.feedback.records import Choice, Window
from hotclip_server.jobs.store import timestamp
from hotclip_server.services.datasets import dataset_to_proto, name_violations
from hotclip_server.services.paging import PageRequest, invalid_token
from hotclip_server.services.vectors import item_errors
from hotclip_server.storage.database import now

Context = grpc.aio.ServicerContext[Any, Any]


class FeedbackService(feedback_pb2_grpc.FeedbackServiceServicer):
    """See feedback.proto."""

    def __init__(self, log: FeedbackLog, datasets: FeedbackDatasets) -> None:
        self._log = log
        self._datasets = datasets

    async def RecordFeedback(  # noqa: N802 - named by the proto
        self, request: feedback_pb2.RecordFeedbackRequest, context: Context
    ) -> feedback_pb2.RecordFeedbackResponse:
        """Keeps choices."""
        arrived = now()
        choices = [
            _choice(choice, arrived, f"choices[{at}]") for at, choice in enumerate(request.choices)
        ]
        done = await self._log.record(request.collection, choices)
        return feedback_pb2.RecordFeedbackResponse(
            recorded=done.recorded, known=done.known, errors=item_errors(done.errors)
        )

    async def ListFeedback(  # noqa: N802 - named by the proto
        self, request: feedback_pb2.ListFeedbackRequest, context: Context
    ) -> feedback_pb2.ListFeedbackResponse:
        """Newest first."""
        page = PageRequest.parse(
            request.page_size,
            request.page_token,
            listing=f"feedback/{request.collection}",
            kinds=(str, int),
        )
        rows = await self._log.newest(
            request.collection, _window(request.window), limit=page.size + 1, before=_before(page)
        )
        rows, token = page.cut(rows, key=lambda choice: (choice.time.isoformat(), choice.seq))
        return feedback_pb2.ListFeedbackResponse(
            choices=map(choice_to_proto, rows), next_page_token=token
        )

    async def DeleteFeedback(  # noqa: N802 - named by the proto
        self, request: feedback_pb2.DeleteFeedbackRequest, context: Context
    ) -> feedback_pb2.DeleteFeedbackResponse:
        """Forgets a window."""
        deleted = await self._log.delete(request.collection, _window(request.window))
        return feedback_pb2.DeleteFeedbackResponse(deleted=deleted)

    async def CreateFeedbackDataset(  # noqa: N802 - named by the proto
        self, request: feedback_pb2.CreateFeedbackDatasetRequest, context: Context
    ) -> feedback_pb2.CreateFeedbackDatasetResponse:
        """A window becomes pairs."""
        window, most = _window(request.window), _check_create(request)
        if request.validate_only:
            return tally_to_proto(await self._datasets.count(request.collection, window, most=most))
        tally = await self._datasets.create(
            request.collection,
            window,
            most=most,
            name=request.name,
            description=request.description,
        )
        return tally_to_proto(tally)


def choice_to_proto(choice: Choice) -> feedback_pb2.Choice:
    """As the wire has it."""
    return feedback_pb2.Choice(
        query=choice.query,
        point_id=choice.point_id,
        time=timestamp(choice.time),
        request_id=choice.request_id,
    )


def tally_to_proto(tally: Tally) -> feedback_pb2.CreateFeedbackDatasetResponse:
    """As the wire has it."""
    return feedback_pb2.CreateFeedbackDatasetResponse(
        dataset=dataset_to_proto(tally.dataset) if tally.dataset else None,
        choices=tally.choices,
        used=tally.used,
        unused=[
            feedback_pb2.UnusedChoices(
                reason=reason, choices=unused.choices, point_ids=unused.point_ids
            )
            for reason, unused in sorted(tally.unused.items())
        ],
    )


def _choice(choice: feedback_pb2.Choice, arrived: datetime, field: str) -> Choice:
    time = _time(choice.time, f"{field}.time") if choice.HasField("time") else arrived
    return Choice(
        query=choice.query, point_id=choice.point_id, time=time, request_id=choice.request_id
    )


def _window(window: feedback_pb2.FeedbackWindow) -> Window:
    return Window(
        start=_time(window.start_time, "window.start_time")
        if window.HasField("start_time")
        else None,
        end=_time(window.end_time, "window.end_time") if window.HasField("end_time") else None,
    )


def _time(stamp: Timestamp, field: str) -> datetime:
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument.field(field, "is no time") from error


def _before(page: PageRequest) -> tuple[datetime, int] | None:
    if page.after is None:
        return None
    time, seq = page.after
    try:
        return datetime.fromisoformat(str(time)), int(seq)
    except ValueError:
        raise invalid_token() from None


def _check_create(request: feedback_pb2.CreateFeedbackDatasetRequest) -> int:
    """The most choices to look at."""
    violations = list(name_violations(request.name, request.description))
    most = request.max_choices if request.HasField("max_choices") else DEFAULT_CHOICES
    if not 1 <= most <= MOST_CHOICES:
        violations.append(FieldViolation("max_choices", f"must be 1 to {MOST_CHOICES}"))
    if violations:
        raise InvalidArgument.fields(violations)
    return most
