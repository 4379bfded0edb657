"""Conditions on payloads, apart from any engine."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from hotclip_proto.v1 import search_pb2
from hotclip_server.errors import InvalidArgument
from hotclip_server.search.payloads import LARGEST_WHOLE

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
MAX_CONDITIONS = 256
"""Conditions in one filter."""
MAX_INDEXED_KEYS = 16
"""Payload fields of a shard that get an index: each takes memory."""


@dataclass(frozen=True, kw_only=True)
class FieldTest:
    """A test of one payload field. `values` (equal to one of these) or bounds, not both."""

    key: str
    """Path as the caller wrote it; dots reach into objects."""
    values: tuple[str | int | bool, ...] | None = None
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True, kw_only=True)
class PayloadFilter:
    """All of must, at least one of should (if any), none of must_not."""

    must: tuple[FieldTest, ...] = ()
    should: tuple[FieldTest, ...] = ()
    must_not: tuple[FieldTest, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For a frame's header."""
        return asdict(self)


def json_path(key: str) -> str:
    """The path of a payload key in the vector engine's notation: other than plain parts quoted.

    Raises:
        ValueError: an empty part, or a part with a quotation mark or a backslash.
    """
    parts = key.split(".")
    if not all(parts):
        raise ValueError("empty, or has an empty part between dots")
    if '"' in key or "\\" in key:
        raise ValueError("has a quotation mark or a backslash, which no filter can address")
    return ".".join(p if _PLAIN.fullmatch(p) else f'"{p}"' for p in parts)


def filter_from_proto(message: search_pb2.Filter) -> PayloadFilter | None:
    """Parses a filter; None if it has no condition.

    Raises:
        InvalidArgument: names the condition, e.g. "filter.must[0].key".
    """
    total = len(message.must) + len(message.should) + len(message.must_not)
    if total > MAX_CONDITIONS:
        raise InvalidArgument.field("filter", f"{total} conditions; at most {MAX_CONDITIONS}")
    if not total:
        return None

    def tests(name: str) -> tuple[FieldTest, ...]:
        conditions = getattr(message, name)
        return tuple(
            _test_from_proto(condition, f"filter.{name}[{i}]")
            for i, condition in enumerate(conditions)
        )

    return PayloadFilter(must=tests("must"), should=tests("should"), must_not=tests("must_not"))


def _test_from_proto(condition: search_pb2.Condition, field: str) -> FieldTest:
    try:
        json_path(condition.key)
    except ValueError as error:
        raise InvalidArgument.field(f"{field}.key", str(error)) from error
    kind = condition.WhichOneof("test")
    if kind is None:
        raise InvalidArgument.field(field, "no test is set")
    if kind == "range":
        bounds = {
            name: getattr(condition.range, name)
            for name in ("gt", "gte", "lt", "lte")
            if condition.range.HasField(name)
        }
        if not bounds or not all(map(math.isfinite, bounds.values())):
            raise InvalidArgument.field(f"{field}.range", "needs a bound; bounds must be finite")
        return FieldTest(key=condition.key, **bounds)
    if kind == "equals_int" and abs(condition.equals_int) > LARGEST_WHOLE:
        problem = "is beyond 2^53, where payloads do not tell whole numbers apart"
        raise InvalidArgument.field(f"{field}.equals_int", problem)
    if kind == "any_of":
        return FieldTest(key=condition.key, values=tuple(condition.any_of.values))
    return FieldTest(key=condition.key, values=(getattr(condition, kind),))
