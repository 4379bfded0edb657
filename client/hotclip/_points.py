"""Points of a collection, and cutting long lists of them into requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from hotclip._embeddings import Embeddings
from hotclip._encoding import OnError, too_large
from hotclip._inputs import Item, item_of
from hotclip._message import made, made_under
from hotclip._payloads import payload_in
from hotclip._server import Limits
from hotclip._status import item_errors, placed
from hotclip.errors import InvalidArgument, ItemError, ItemsFailed
from hotclip_proto.v1 import search_pb2

MAX_IDS = 10_000
_MESSAGE_MARGIN = 64 << 10


@dataclass(frozen=True)
class Vector:
    """A vector of the caller, (dim,), with the space that it belongs to."""

    values: ArrayLike
    space_id: str


@dataclass(frozen=True)
class Point:
    """Something to store: an item of encode, or a vector of the collection's space.

    `id` is 1 to 512 bytes of UTF-8 and replaces what has it; `payload` is a JSON object;
    `reference` says where the caller keeps what a vector was made of, e.g. a URL (at most 2 KiB):
    it comes back with the sources, and the server fetches nothing.
    """

    id: str
    content: Item | Vector | Embeddings
    payload: Mapping[str, Any] | None = None
    reference: str = ""


@dataclass(frozen=True)
class Upserted:
    """How many points were stored, which were not, and the version that encoded."""

    upserted: int
    errors: tuple[ItemError, ...]
    version: str
    space_id: str


PointLike: TypeAlias = "Point | tuple[str, Any] | tuple[str, Any, Mapping[str, Any] | None]"


def point_of(value: object, where: str) -> search_pb2.Point:
    """Packs a point; reads an image."""
    if isinstance(value, tuple) and len(value) in (2, 3):
        value = Point(*value)
    if not isinstance(value, Point):
        raise InvalidArgument.field(where, "neither a Point nor (id, content[, payload])")
    if not isinstance(value.id, str) or not value.id:
        raise InvalidArgument.field(f"{where}.id", "not a string of at least one character")
    packed = made_under(where, search_pb2.Point, id=value.id, reference=value.reference)
    if isinstance(value.content, Vector | Embeddings):
        packed.vector.CopyFrom(vector_of(value.content, f"{where}.content"))
    else:
        packed.item.CopyFrom(item_of(value.content, f"{where}.content"))
    if value.payload is not None:
        packed.payload.CopyFrom(payload_in(value.payload, f"{where}.payload"))
    return packed


@dataclass
class PointBlock:
    """Points of one request; some may have failed right here."""

    points: list[search_pb2.Point] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """Positions of `points` in the caller's list."""
    failed: list[ItemError] = field(default_factory=list)
    size: int = 0
    """Bytes of `points`."""


def point_blocks(points: Iterable[PointLike], limits: Limits) -> Iterator[PointBlock]:
    """Cuts points into requests; reads each image when its turn comes."""
    room = limits.max_message_bytes - _MESSAGE_MARGIN
    block = PointBlock()
    for index, value in enumerate(points):
        try:
            point = point_of(value, f"points[{index}]")
        except InvalidArgument as error:
            if not error.reason.startswith(("IMAGE_", "TEXT_")):
                raise
            block.failed.append(ItemError(index, error.code, error.reason, error.message))
            continue
        if large := too_large(point.item, index, limits):
            block.failed.append(large)
            continue
        size = point.ByteSize() + 16
        if block.points and (
            len(block.points) >= limits.max_items_per_request or block.size + size > room
        ):
            yield block
            block = PointBlock()
        block.points.append(point)
        block.positions.append(index)
        block.size += size
    if block.points or block.failed:
        yield block


class UpsertTally:
    """Adds up the answers to the parts of an upsert."""

    def __init__(self, on_error: OnError) -> None:
        if on_error not in ("raise", "return"):
            raise InvalidArgument.field("on_error", f"{on_error!r} is no raise or return")
        self._on_error = on_error
        self._upserted = self._total = 0
        self._errors: list[ItemError] = []
        self._version = self._space = ""

    def add(self, block: PointBlock, reply: search_pb2.UpsertResponse) -> None:
        """Takes the answer to a part; an empty one if nothing of it could be sent."""
        self._upserted += reply.upserted
        self._total += len(block.points) + len(block.failed)
        self._version = reply.version or self._version
        self._space = reply.space_id or self._space
        self._errors += block.failed
        for error in item_errors(reply.errors):
            index = block.positions[error.index]
            self._errors.append(placed(error, index))

    def result(self) -> Upserted:
        """What became of all points; with "raise" raises ItemsFailed if some were bad."""
        if not self._total:
            raise InvalidArgument.field("points", "empty list")
        errors = tuple(sorted(self._errors, key=lambda e: e.index))
        if errors and self._on_error == "raise":
            raise ItemsFailed(errors, self._total, done=f"{self._upserted} were stored")
        return Upserted(self._upserted, errors, self._version, self._space)


def vector_of(value: Vector | Embeddings, where: str) -> search_pb2.Vector:
    values = value.values if isinstance(value, Vector) else value.dequantize()
    try:
        array = np.asarray(values, dtype="<f4")
    except (TypeError, ValueError) as error:
        raise InvalidArgument.field(where, f"no vector of numbers: {error}") from error
    if array.ndim != 1 or not array.size:
        raise InvalidArgument.field(where, f"shape {array.shape} is not (dim,)")
    if not value.space_id:
        raise InvalidArgument.field(where, "no space_id: vectors of unknown space are no use")
    return made_under(where, search_pb2.Vector, data=array.tobytes(), space_id=value.space_id)


def deletions(
    collection: str, ids: Sequence[str], conditions: search_pb2.Filter | None
) -> Iterator[search_pb2.DeleteRequest]:
    """The requests that remove these points, or those that match."""
    check_ids(ids)
    if conditions is not None:
        yield made(search_pb2.DeleteRequest, collection=collection, ids=ids, filter=conditions)
        return
    for start in range(0, len(ids), MAX_IDS):
        yield made(
            search_pb2.DeleteRequest, collection=collection, ids=ids[start : start + MAX_IDS]
        )


def check_ids(ids: Sequence[str]) -> None:
    """A str is a sequence of its characters, which are not what its caller means."""
    if isinstance(ids, str):
        raise InvalidArgument.field("ids", "a str; give a list of ids")
