"""Conditions on payloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from hotclip._message import filled
from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import search_pb2


@dataclass(frozen=True)
class Match:
    """The field equals a str, int or bool, or is one of several str. Dots reach inside."""

    key: str
    value: str | int | bool | Sequence[str]


@dataclass(frozen=True)
class Between:
    """The field is a number within bounds; those left out do not bind."""

    key: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


Condition: TypeAlias = Match | Between


@dataclass(frozen=True)
class Filter:
    """All of must, at least one of should (if any), none of must_not."""

    must: Sequence[Condition] = ()
    should: Sequence[Condition] = ()
    must_not: Sequence[Condition] = ()


FilterLike: TypeAlias = "Filter | Mapping[str, str | int | bool | Sequence[str]]"


def filter_of(told: FilterLike | None) -> search_pb2.Filter | None:
    """Packs a filter; a mapping means that each key must match its value."""
    if told is None:
        return None
    given: object = told
    if isinstance(given, Mapping):
        given = Filter(must=[Match(key, value) for key, value in given.items()])
    if not isinstance(given, Filter):
        raise InvalidArgument.field("filter", "neither a Filter nor a mapping")
    return search_pb2.Filter(
        must=[_condition(c, f"filter.must[{i}]") for i, c in enumerate(given.must)],
        should=[_condition(c, f"filter.should[{i}]") for i, c in enumerate(given.should)],
        must_not=[_condition(c, f"filter.must_not[{i}]") for i, c in enumerate(given.must_not)],
    )


def _condition(told: object, field: str) -> search_pb2.Condition:
    if isinstance(told, Between):
        bounds = {name: getattr(told, name) for name in ("gt", "gte", "lt", "lte")}
        test: dict[str, Any] = {"range": filled(search_pb2.Range, bounds, field)}
    elif isinstance(told, Match):
        test = _match(told.value, field)
    else:
        raise InvalidArgument.field(field, "neither a Match nor a Between")
    return filled(search_pb2.Condition, {"key": told.key, **test}, field)


def _match(value: object, field: str) -> dict[str, Any]:
    match value:
        case bool():
            return {"equals_bool": value}
        case int():
            return {"equals_int": value}
        case str():
            return {"equals_string": value}
        case Sequence() if all(isinstance(v, str) for v in value):
            return {"any_of": filled(search_pb2.StringList, {"values": value}, field)}
    raise InvalidArgument.field(field, f"{value!r} is no str, int, bool or list of str")
