"""Blocks of vectors as they come over the wire, as numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hotclip.errors import DataLoss, InvalidArgument
from hotclip_proto.v1 import types_pb2

FLOAT32, FLOAT16 = types_pb2.D_TYPE_FLOAT32, types_pb2.D_TYPE_FLOAT16
INT8, BINARY = types_pb2.D_TYPE_INT8, types_pb2.D_TYPE_BINARY

_WIRE: dict[types_pb2.DType.ValueType, np.dtype[Any]] = {
    FLOAT32: np.dtype("<f4"),
    FLOAT16: np.dtype("<f2"),
    INT8: np.dtype("i1"),
    BINARY: np.dtype("u1"),
}


def wire_dtype(dtype: DTypeLike) -> types_pb2.DType.ValueType:
    """The wire's name of "float32", "float16", "int8", a numpy type of these, or "binary"."""
    if isinstance(dtype, str) and dtype == "binary":
        return BINARY
    try:
        wanted = np.dtype(dtype).newbyteorder("<")
    except TypeError as error:
        raise InvalidArgument.field("dtype", f"{dtype!r} is no element type") from error
    for name in (FLOAT32, FLOAT16, INT8):
        if wanted == _WIRE[name]:
            return name
    raise InvalidArgument.field("dtype", f"{wanted.name} is no float32, float16, int8 or binary")


@dataclass(frozen=True)
class Rows:
    """Vectors, a row each.

    `values` is (n, dim) of float32, float16 or int8, or (n, ceil(dim / 8)) uint8 of signs;
    `scales` is float32 (n,) for int8 and signs, None for floats.
    """

    values: NDArray[Any]
    scales: NDArray[np.float32] | None
    dim: int

    def __len__(self) -> int:
        return len(self.values)

    def placed(self, positions: Iterable[int], count: int) -> Rows:
        """`count` rows: these at their positions, zeros elsewhere."""
        return assembled([(np.fromiter(positions, np.intp), self)], count)

    def without(self, failed: Iterable[int]) -> Rows:
        """The same with scale 0 for failed rows, so that signs of nothing are no vector."""
        at = list(failed)
        if at and self.scales is not None:
            self.scales[at] = 0
        return self


def assembled(parts: Iterable[tuple[slice | NDArray[np.intp], Rows]], count: int) -> Rows:
    """`count` rows out of parts with their places; zeros elsewhere."""
    whole: Rows | None = None
    for places, rows in parts:
        if whole is None:
            values = np.zeros((count, rows.values.shape[1]), rows.values.dtype)
            scales = None if rows.scales is None else np.zeros(count, np.float32)
            whole = Rows(values, scales, rows.dim)
        whole.values[places] = rows.values
        if whole.scales is not None:
            whole.scales[places] = rows.scales
    if whole is None:
        raise ValueError("no part")
    return whole


def unpack(block: types_pb2.VectorBlock) -> Rows:
    """Rows of a block; floats and integers share the block's memory and can't be written.

    Raises:
        DataLoss: The block's length is not what its shape says, or its type is unknown.
    """
    dtype = _WIRE.get(block.dtype)
    if dtype is None:
        raise DataLoss(f"unknown element type {block.dtype}", reason="VECTOR_BLOCK_DTYPE")
    data, count, dim = block.data, block.count, block.dim  # each look at a field copies it
    width = math.ceil(dim / 8) if block.dtype == BINARY else dim
    if len(data) != count * width * dtype.itemsize:
        raise DataLoss(
            f"{len(data)} bytes are not {count} x {dim} of {dtype.name}",
            reason="VECTOR_BLOCK_LENGTH",
        )
    values = np.frombuffer(data, dtype).reshape(count, width)
    values = values.astype(dtype.newbyteorder("="), copy=False)
    return Rows(values, _scales(block, count, dim), dim)


def _scales(block: types_pb2.VectorBlock, count: int, dim: int) -> NDArray[np.float32] | None:
    """float32 (count,), may be written."""
    if block.dtype == BINARY:
        return np.full(count, 1 / math.sqrt(max(dim, 1)), np.float32)
    if block.dtype != INT8:
        return None
    scales = np.frombuffer(block.scales, "<f4").astype(np.float32)
    if len(scales) != count:
        raise DataLoss(f"{len(scales)} scales of {count} rows", reason="VECTOR_BLOCK_LENGTH")
    return scales
