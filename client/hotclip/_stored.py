"""Points as a collection has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotclip._inputs import Image
from hotclip._message import made
from hotclip._payloads import payload_out
from hotclip._points import Vector
from hotclip_proto.v1 import search_pb2, types_pb2

IDS_AT_ONCE = 1000
SOURCES_AT_ONCE = 100
"""Ids of a request that asks for sources as well: images are large."""


@dataclass(frozen=True, kw_only=True)
class StoredPoint:
    """A point of a collection."""

    id: str
    payload: Mapping[str, Any]
    vector: Vector | None = None
    """If asked for: `values` float32 (dim,) of unit length, with their space."""
    source: str | Image | None = None
    """If asked for and kept: the text or image that it was made of, an item of encode."""
    reference: str = ""
    """If sources are asked for: what was given with the point."""

    def __repr__(self) -> str:
        told = [f"id={self.id!r}, payload={self.payload!r}"]
        told += [name for name in ("vector", "source") if getattr(self, name) is not None]
        return f"StoredPoint({', '.join(told)})"


def stored_points(messages: Iterable[search_pb2.StoredPoint]) -> list[StoredPoint]:
    """Parses points."""
    return [_point(message) for message in messages]


def fields_of(*, vectors: bool, sources: bool) -> search_pb2.PointFields:
    """What else than id and payload is asked for."""
    return made(search_pb2.PointFields, vectors=vectors, sources=sources)


def _point(message: search_pb2.StoredPoint) -> StoredPoint:
    vector = None
    if message.HasField("vector"):
        values = np.frombuffer(message.vector.data, "<f4").astype(np.float32)
        vector = Vector(values, message.vector.space_id)
    return StoredPoint(
        id=message.id,
        payload=payload_out(message.payload),
        vector=vector,
        source=_source(message.source) if message.HasField("source") else None,
        reference=message.reference,
    )


def _source(item: types_pb2.EncodeItem) -> str | Image:
    kind = item.WhichOneof("content")
    if kind == "text":
        return item.text
    if kind == "image":
        return Image.from_bytes(item.image)
    tensor = item.tensor
    pixels = np.frombuffer(tensor.data, np.uint8).reshape(tensor.height, tensor.width, 3)
    return Image.from_pixels(pixels)
