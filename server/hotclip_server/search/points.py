"""Points of an Upsert, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.errors import (
    FailedPrecondition,
    HotclipError,
    InvalidArgument,
    ResourceExhausted,
)
from hotclip_server.search.payloads import payload_from_struct

MAX_ID_BYTES = 512
MAX_REFERENCE_BYTES = 2048


@dataclass(frozen=True, kw_only=True)
class NewPoint:
    """A good point: an item to encode, or a unit vector of float32 (dim,)."""

    index: int
    id: str
    payload: dict[str, Any]
    item: EncodeItem | None
    vector: NDArray[np.float32] | None
    reference: str = ""
    """Where the caller keeps the original."""

    @property
    def kind(self) -> str:
        """As in the table of sources."""
        return "vector" if self.item is None else self.item.WhichOneof("content") or ""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a given vector must belong to."""

    space_id: str
    dim: int


def parse_points(
    points: Sequence[search_pb2.Point], space: Space, max_payload_bytes: int
) -> tuple[list[NewPoint], dict[int, HotclipError]]:
    """Checks the points of a request.

    Returns:
        The good points in order, and what is wrong with the others, by index.

    Raises:
        FailedPrecondition: a vector of another space; reason SPACE_MISMATCH.
    """
    good: list[NewPoint] = []
    errors: dict[int, HotclipError] = {}
    for index, point in enumerate(points):
        try:
            good.append(_parse_point(index, point, space, max_payload_bytes))
        except (InvalidArgument, ResourceExhausted) as error:
            errors[index] = error
    return good, errors


def parse_vector(vector: search_pb2.Vector, space: Space, field: str) -> NDArray[np.float32]:
    """A caller's vector at unit length; float32 (dim,).

    Raises:
        FailedPrecondition: it is of another space; reason SPACE_MISMATCH.
        InvalidArgument: no space_id, wrong length, not finite, or zero.
    """
    if not vector.space_id:
        raise InvalidArgument.field(f"{field}.space_id", "required")
    if vector.space_id != space.space_id:
        raise FailedPrecondition(
            f"{field} is of space {vector.space_id}, the collection of {space.space_id}",
            reason="SPACE_MISMATCH",
            metadata={"space_id": space.space_id, "expected_space_id": vector.space_id},
        )
    if len(vector.data) != 4 * space.dim:
        raise InvalidArgument.field(
            f"{field}.data", f"{len(vector.data)} bytes; {space.dim} float32 are {4 * space.dim}"
        )
    with np.errstate(invalid="ignore"):  # Signalling NaN: refused below.
        values = np.frombuffer(vector.data, dtype="<f4").astype(np.float64)
    norm = float(np.linalg.norm(values))
    if not np.isfinite(norm) or norm == 0.0:
        raise InvalidArgument.field(f"{field}.data", "zero or not finite: it has no direction")
    return (values / norm).astype(np.float32)


def _parse_point(
    index: int, point: search_pb2.Point, space: Space, max_payload_bytes: int
) -> NewPoint:
    field = f"points[{index}]"
    if not 1 <= len(point.id.encode()) <= MAX_ID_BYTES:
        raise InvalidArgument.field(f"{field}.id", f"must be 1 to {MAX_ID_BYTES} bytes of UTF-8")
    if len(point.reference.encode()) > MAX_REFERENCE_BYTES:
        problem = f"must be at most {MAX_REFERENCE_BYTES} bytes of UTF-8"
        raise InvalidArgument.field(f"{field}.reference", problem)
    try:
        payload = payload_from_struct(point.payload, max_payload_bytes)
    except OverflowError as error:
        raise ResourceExhausted(f"{field}.payload: {error}", reason="PAYLOAD_TOO_LARGE") from error
    except ValueError as error:
        raise InvalidArgument.field(f"{field}.payload", str(error)) from error
    item: EncodeItem | None = None
    vector: NDArray[np.float32] | None = None
    if point.WhichOneof("content") == "vector":
        vector = parse_vector(point.vector, space, f"{field}.vector")
    elif point.item.WhichOneof("content") is None:
        raise InvalidArgument.field(field, "must hold an item or a vector")
    else:
        item = point.item
    return NewPoint(
        index=index,
        id=point.id,
        payload=payload,
        item=item,
        vector=vector,
        reference=point.reference,
    )
