"""Bridges, as the caller sees them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hotclip._drift import given
from hotclip._jobs import when
from hotclip_proto.v1 import drift_pb2


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """A linear map from the stored vectors of a collection to the space of another version.

    Recall is the share of the k nearest by the version itself that a search by the bridge finds
    among its first k, measured among measured_points, each mapped by a map that was fitted without
    it. In a collection of many more it is lower, in one of these points alone as high or higher.
    """

    collection: str
    bound_version: str
    """That made the stored vectors."""
    version: str
    """That encodes queries which use the bridge."""
    space_id: str
    method: str
    """"procrustes" or "ridge"."""
    penalty: float
    fitted_points: int
    measured_points: int
    """That were searched among."""
    collection_points: int
    """Of the collection when it was fitted."""
    cosine_mean: float
    """Of mapped and new vectors of the same points."""
    k: int
    recall: float
    """Points searching for points."""
    recall_of_bound: float
    """Likewise of a search by bound_version, without the bridge."""
    queries: int
    query_recall: float | None
    """Texts searching for points; None without texts."""
    query_recall_of_bound: float | None
    create_time: datetime | None
    current: bool
    """Whether the collection still holds the vectors that it maps."""


def bridge(message: drift_pb2.Bridge) -> Bridge:
    """Parses a bridge."""
    return Bridge(
        collection=message.collection,
        bound_version=message.bound_version,
        version=message.version,
        space_id=message.space_id,
        method=message.method,
        penalty=message.penalty,
        fitted_points=message.fitted_points,
        measured_points=message.measured_points,
        collection_points=message.collection_points,
        cosine_mean=message.cosine_mean,
        k=message.k,
        recall=message.recall,
        recall_of_bound=message.recall_of_bound,
        queries=message.queries,
        query_recall=given(message, "query_recall", message.query_recall),
        query_recall_of_bound=given(
            message, "query_recall_of_bound", message.query_recall_of_bound
        ),
        create_time=when(message.create_time),
        current=message.current,
    )
