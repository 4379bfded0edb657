"""Filters and errors in Qdrant's terms."""

from __future__ import annotations

from collections.abc import Sequence

from qdrant_client import models
from qdrant_client.http.exceptions import UnexpectedResponse

from hotclip_server.errors import (
    FailedPrecondition,
    HotclipError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from hotclip_server.search.filters import FieldTest, PayloadFilter, json_path
from hotclip_server.search.ids import point_uuid


def to_error(error: UnexpectedResponse) -> HotclipError:
    """The domain's error; what is not known stays a bug."""
    said = (error.content or b"").decode("utf-8", "replace")[:500]
    match error.status_code:
        case 404:
            return NotFound(
                f"the vector database has no such shard: {said}", reason="SHARD_NOT_FOUND"
            )
        case 401 | 403:
            return FailedPrecondition(
                "the vector database refuses the API key", reason="VECTORS_REFUSED"
            )
        case 409:  # somebody else makes it right now
            return Unavailable(f"the vector database is busy: {said}", retry_after_s=1.0)
        case 507:
            return ResourceExhausted("the vector database is full", reason="DISK_FULL")
        case status if "No space left" in said or "disk space" in said.lower():
            return ResourceExhausted(f"the vector database is full ({status})", reason="DISK_FULL")
        case status if status == 429 or (status or 500) >= 500:
            return Unavailable(f"the vector database fails ({status}): {said}", retry_after_s=1.0)
        case status:
            return HotclipError(f"the vector database refuses a call ({status}): {said}")


def to_qdrant_filter(
    payload_filter: PayloadFilter | None, leave_out: Sequence[str]
) -> models.Filter | None:
    """Qdrant's filter, without the points of `leave_out`."""
    if payload_filter is None and not leave_out:
        return None
    wanted = payload_filter or PayloadFilter()
    must_not: list[models.Condition] = [_condition(test) for test in wanted.must_not]
    if leave_out:
        must_not.append(models.HasIdCondition(has_id=[str(point_uuid(i)) for i in leave_out]))
    return models.Filter(
        must=[_condition(test) for test in wanted.must] or None,
        should=[_condition(test) for test in wanted.should] or None,
        must_not=must_not or None,
    )


def _condition(test: FieldTest) -> models.FieldCondition:
    # The caller's payload lies under "p".
    key = "p." + json_path(test.key)
    if test.values is None:
        bounds = models.Range(gt=test.gt, gte=test.gte, lt=test.lt, lte=test.lte)
        return models.FieldCondition(key=key, range=bounds)
    if len(test.values) == 1:
        return models.FieldCondition(key=key, match=models.MatchValue(value=test.values[0]))
    # Several values are always texts: see StringList.
    several = [str(value) for value in test.values]
    return models.FieldCondition(key=key, match=models.MatchAny(any=several))
