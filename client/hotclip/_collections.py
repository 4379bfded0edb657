"""Collections, as the caller sees them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hotclip._jobs import when
from hotclip_proto.v1 import search_pb2


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A named set of points, bound to the version that made its vectors."""

    name: str
    model: str
    version: str
    space_id: str
    text_encoder_id: str
    vision_encoder_id: str
    dim: int
    """Elements of a vector."""
    points: int
    create_time: datetime | None
    keep_sources: bool
    """Whether texts and images are kept, so that it can be reindexed."""
    shadow_version: str
    """Version that a shadow is built for; empty if none."""
    shadow_complete: bool
    indexed_points: int
    """Points that the approximate index covers; the others are compared one by one."""
    indexing: bool
    """Whether the index is being built."""
    previous_version: str
    """Version that a rollback binds it to again; its vectors get every write. Empty if none."""
    has_texts: bool
    """Whether it ever held points of texts: then it follows only versions with its clip-text."""
    has_images: bool
    """Whether it ever held points of images: then only those with its clip-vision."""
    has_vectors: bool
    """Whether it holds points given as vectors: then only those of its space."""


def collection(message: search_pb2.Collection) -> Collection:
    """Parses a collection."""
    return Collection(
        name=message.name,
        model=message.model,
        version=message.version,
        space_id=message.space_id,
        text_encoder_id=message.text_encoder_id,
        vision_encoder_id=message.vision_encoder_id,
        dim=message.dim,
        points=message.points,
        create_time=when(message.create_time),
        keep_sources=message.keep_sources,
        shadow_version=message.shadow_version,
        shadow_complete=message.shadow_complete,
        indexed_points=message.indexed_points,
        indexing=message.indexing,
        previous_version=message.previous_version,
        has_texts=message.has_texts,
        has_images=message.has_images,
        has_vectors=message.has_vectors,
    )
