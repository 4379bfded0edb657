"""What a change of version changes, as the caller sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

from google.protobuf.message import Message

from hotclip._jobs import when
from hotclip_proto.v1 import drift_pb2, types_pb2

T = TypeVar("T")

_TOWERS = {types_pb2.TOWER_TEXT: "clip-text", types_pb2.TOWER_VISION: "clip-vision"}


class CollectionNeed(StrEnum):
    """What a collection needs when the version goes live; its value is its name."""

    UNKNOWN = "UNKNOWN"
    NONE = "NONE"
    REINDEX = "REINDEX"
    SOURCES = "SOURCES"
    DONE = "DONE"


@dataclass(frozen=True, kw_only=True)
class TowerDrift:
    """How the vectors of one tower move."""

    tower: str
    """"clip-text" or "clip-vision"."""
    unchanged: bool
    """Both versions have the same encoder: every vector is the same."""
    items: int
    """Encoded by both."""
    cosine_mean: float | None
    """Of the old and the new vector of an item; None if nothing was measured."""
    cosine_quantiles: Mapping[float, float]
    """By share of the items: .0, .01, .05, .25, .5, .75, .95, 1."""
    items_per_s: float | None
    """That the version encoded beside serving."""


@dataclass(frozen=True, kw_only=True)
class CollectionDrift:
    """What the change means for one collection."""

    name: str
    bound_version: str
    """The version that its neighbours are compared with."""
    points: int
    texts: int
    images: int
    need: CollectionNeed
    """NONE: its vectors stay valid. REINDEX. SOURCES: reindex, but points were stored without
    their source. DONE: it is bound to the version or has a complete shadow for it."""
    to_encode: int
    """Points that reindexing encodes; the others are copied."""
    reindex_s: float | None
    """Predicted seconds of reindexing."""
    sampled: int
    k: int
    overlap: float | None
    """Mean share of the k nearest points of a point that stay among its k nearest."""
    overlap_p10: float | None
    """A tenth of the points have less."""
    queries: int
    query_overlap: float | None
    """Likewise of what texts find."""
    same_first: float | None
    """Share of the texts whose first hit stays the same."""


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """What changes from base_version to version."""

    job: str
    model: str
    version: str
    base_version: str
    space_id: str
    base_space_id: str
    towers: Mapping[str, TowerDrift]
    """By name."""
    collections: Mapping[str, CollectionDrift]
    """By name."""
    before: Mapping[str, float]
    """Retrieval of base_version on the dataset; empty without one."""
    after: Mapping[str, float]
    """Of version."""
    reindex_s: float | None
    """Predicted seconds of reindexing all that need it; None: something was not measured."""
    remarks: tuple[str, ...]
    """What the figures do not cover."""
    create_time: datetime | None


def drift_report(message: drift_pb2.DriftReport) -> DriftReport:
    """Parses a report."""
    return DriftReport(
        job=message.job,
        model=message.model,
        version=message.version,
        base_version=message.base_version,
        space_id=message.space_id,
        base_space_id=message.base_space_id,
        towers=towers(message.towers),
        collections={c.name: _collection(c) for c in message.collections},
        before={metric.name: metric.before for metric in message.metrics},
        after={metric.name: metric.after for metric in message.metrics},
        reindex_s=given(message, "reindex_s", message.reindex_s),
        remarks=tuple(message.remarks),
        create_time=when(message.create_time),
    )


def towers(messages: Iterable[drift_pb2.TowerDrift]) -> dict[str, TowerDrift]:
    """Parses towers, by name; those that this client has not heard of are left out."""
    return {_TOWERS[m.tower]: _tower(m) for m in messages if m.tower in _TOWERS}


def _tower(message: drift_pb2.TowerDrift) -> TowerDrift:
    return TowerDrift(
        tower=_TOWERS[message.tower],
        unchanged=message.unchanged,
        items=message.items,
        cosine_mean=given(message, "cosine_mean", message.cosine_mean),
        cosine_quantiles={q.share: q.value for q in message.cosine_quantiles},
        items_per_s=given(message, "items_per_s", message.items_per_s),
    )


def _collection(message: drift_pb2.CollectionDrift) -> CollectionDrift:
    known = drift_pb2.CollectionDrift.Need.DESCRIPTOR.values_by_number.get(message.need)
    need = known.name.removeprefix("NEED_") if known else ""
    return CollectionDrift(
        name=message.name,
        bound_version=message.bound_version,
        points=message.points,
        texts=message.texts,
        images=message.images,
        need=CollectionNeed(need) if need in CollectionNeed.__members__ else CollectionNeed.UNKNOWN,
        to_encode=message.to_encode,
        reindex_s=given(message, "reindex_s", message.reindex_s),
        sampled=message.sampled,
        k=message.k,
        overlap=given(message, "overlap", message.overlap),
        overlap_p10=given(message, "overlap_p10", message.overlap_p10),
        queries=message.queries,
        query_overlap=given(message, "query_overlap", message.query_overlap),
        same_first=given(message, "same_first", message.same_first),
    )


def given(message: Message, field: str, value: T) -> T | None:
    """The value of an optional field; None if it is not set."""
    return value if message.HasField(field) else None
