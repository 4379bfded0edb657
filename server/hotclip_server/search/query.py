"""Payloads and filters in the vector engine's terms; used inside the vector process alone.

The engine's binding takes True in a filter for the integer 1, which no stored truth value
equals. So truth values are stored as strings that begin with a mark, and a caller's string
that begins with it gets one more. A whole number is looked for as a range of that number alone:
then one index of a field answers both kinds of question about its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

import qdrant_edge as engine

from hotclip_server.search.filters import json_path

_MARK = "\x01"
MARK_IN_JSON = b"\\u0001"
"""Where this is not in the JSON of values, they are as they were stored."""
TEXTS, NUMBERS = "texts", "numbers"
"""What an index of a payload field covers; truth values are texts here."""


def to_engine_value(value: Any) -> Any:
    """A JSON value as it is stored."""
    if isinstance(value, bool):
        return f"{_MARK}{int(value)}"
    if isinstance(value, str):
        return _MARK + value if value.startswith(_MARK) else value
    if isinstance(value, dict):
        return {key: to_engine_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_engine_value(item) for item in value]
    return value


def from_engine_value(value: Any) -> Any:
    """The JSON value that was stored."""
    if isinstance(value, str) and value.startswith(_MARK):
        rest = value[1:]
        return rest if rest.startswith(_MARK) else rest == "1"
    if isinstance(value, dict):
        return {key: from_engine_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_engine_value(item) for item in value]
    return value


def to_engine_filter(spec: dict[str, Any] | None, leave_out: Iterable[UUID]) -> Any | None:
    """The engine's filter of a PayloadFilter as JSON, without the points of `leave_out`."""
    excluded: set[Any] = set(leave_out)
    if spec is None and not excluded:
        return None
    conditions: dict[str, list[Any]] = {"must": [], "should": [], "must_not": []}
    for name, tests in (spec or {}).items():
        conditions[name] = [_condition(test) for test in tests]
    if excluded:
        conditions["must_not"].append(engine.HasIdCondition(excluded))
    return engine.Filter(
        must=conditions["must"] or None,
        should=conditions["should"] or None,
        must_not=conditions["must_not"] or None,
    )


def indexable(spec: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """The engine's keys that a filter tests, and what it looks for in each: TEXTS or NUMBERS."""
    for tests in (spec or {}).values():
        for test in tests:
            yield _key(test), NUMBERS if _bounds(test) else TEXTS


def index_operation(key: str, kind: str) -> Any:
    """What makes an index of a payload field. It takes no part in the graph of vectors: where
    few points match they are compared one by one, else the graph is followed across the others."""
    params = (
        engine.FloatIndexParams(enable_hnsw=False)
        if kind == NUMBERS
        else engine.KeywordIndexParams(enable_hnsw=False)
    )
    return engine.UpdateOperation.create_field_index(key, params)


def _condition(test: dict[str, Any]) -> Any:
    key = _key(test)
    if (bounds := _bounds(test)) is not None:
        return engine.FieldCondition(key, range=engine.RangeFloat(**bounds))
    values = [to_engine_value(value) for value in test["values"]]
    if len(values) == 1:
        return engine.FieldCondition(key, match=engine.MatchValue(values[0]))
    return engine.FieldCondition(key, match=engine.MatchAny(values))


def _key(test: dict[str, Any]) -> str:
    # The caller's payload lies under "p".
    return "p." + json_path(test["key"])


def _bounds(test: dict[str, Any]) -> dict[str, float | None] | None:
    """The range that a test of numbers is; None of a test of texts or truth values."""
    values = test["values"]
    if values is None:
        return {name: test[name] for name in ("gt", "gte", "lt", "lte")}
    if len(values) == 1 and isinstance(values[0], int) and not isinstance(values[0], bool):
        return {"gte": values[0], "lte": values[0]}
    return None
