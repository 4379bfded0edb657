"""Filters and errors in Qdrant's terms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


def index_failed(name: str, told: models.CollectionInfo) -> FailedPrecondition:
    """What is the matter with a collection whose status is RED."""
    status = told.optimizer_status
    why = status.error if isinstance(status, models.OptimizersStatusOneOf1) else "it says not why"
    return FailedPrecondition(
        f"the vector database can't build the index of {name}: {why[:500]}", reason="INDEX_FAILED"
    )


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


def indexable(
    payload_filter: PayloadFilter | None,
) -> Iterator[tuple[str, models.PayloadSchemaType]]:
    """Keys that a filter tests, and the kind of index that answers each test."""
    if payload_filter is not None:
        tests = (*payload_filter.must, *payload_filter.should, *payload_filter.must_not)
        for test in tests:
            yield _key(test), _schema(test)


def _condition(test: FieldTest) -> models.FieldCondition:
    key = _key(test)
    if (bounds := _bounds(test)) is not None:
        return models.FieldCondition(key=key, range=bounds)
    values = test.values or ()
    if len(values) == 1:
        return models.FieldCondition(key=key, match=models.MatchValue(value=values[0]))
    # Several values are always texts: see StringList.
    several = [str(value) for value in values]
    return models.FieldCondition(key=key, match=models.MatchAny(any=several))


def _key(test: FieldTest) -> str:
    # The caller's payload lies under "p".
    return "p." + json_path(test.key)


def _bounds(test: FieldTest) -> models.Range | None:
    """The range that a test of numbers is: one index answers both kinds of question about them."""
    if test.values is None:
        return models.Range(gt=test.gt, gte=test.gte, lt=test.lt, lte=test.lte)
    if len(test.values) == 1:
        (value,) = test.values
        if isinstance(value, int) and not isinstance(value, bool):
            return models.Range(gte=value, lte=value)
    return None


def _schema(test: FieldTest) -> models.PayloadSchemaType:
    if _bounds(test) is not None:
        return models.PayloadSchemaType.FLOAT
    if test.values and isinstance(test.values[0], bool):
        return models.PayloadSchemaType.BOOL
    return models.PayloadSchemaType.KEYWORD
