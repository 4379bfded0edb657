"""Conditions on payloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

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
    if isinstance(told, Mapping):
        told = Filter(must=[Match(key, value) for key, value in told.items()])
    return search_pb2.Filter(
        must=[_condition(c, f"filter.must[{i}]") for i, c in enumerate(told.must)],
        should=[_condition(c, f"filter.should[{i}]") for i, c in enumerate(told.should)],
        must_not=[_condition(c, f"filter.must_not[{i}]") for i, c in enumerate(told.must_not)],
    )


def _condition(told: Condition, field: str) -> search_pb2.Condition:
    if isinstance(told, Between):
        bounds = search_pb2.Range(gt=told.gt, gte=told.gte, lt=told.lt, lte=told.lte)
        return search_pb2.Condition(key=told.key, range=bounds)
    match told.value:
        case bool():
            return search_pb2.Condition(key=told.key, equals_bool=told.value)
        case int():
            return search_pb2.Condition(key=told.key, equals_int=told.value)
        case str():
            return search_pb2.Condition(key=told.key, equals_string=told.value)
        case Sequence() if all(isinstance(v, str) for v in told.value):
            several = search_pb2.StringList(values=told.value)
            return search_pb2.Condition(key=told.key, any_of=several)
    raise InvalidArgument.field(field, f"{told.value!r} is no str, int, bool or list of str")
