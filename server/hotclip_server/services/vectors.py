"""Vectors and item errors as they go over the wire."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from google.rpc import code_pb2
from numpy.typing import NDArray

from hotclip_proto.v1 import types_pb2
from hotclip_server.errors import HotclipError, InvalidArgument

FLOAT32 = types_pb2.D_TYPE_FLOAT32
FLOAT16 = types_pb2.D_TYPE_FLOAT16
INT8 = types_pb2.D_TYPE_INT8
BINARY = types_pb2.D_TYPE_BINARY

INT8_LARGEST = 127
"""-128 is not used, so that a vector and its opposite have opposite elements."""
FLOAT16_LARGEST = float(np.finfo(np.float16).max)


def check_dtype(dtype: types_pb2.DType.ValueType) -> types_pb2.DType.ValueType:
    """The element type of an answer; float32 if the request says nothing.

    Raises:
        InvalidArgument: not known; names the field.
    """
    wanted = dtype or FLOAT32
    if wanted not in (FLOAT32, FLOAT16, INT8, BINARY):
        raise InvalidArgument.field("dtype", f"unknown element type {dtype}")
    return wanted


def pack_into(
    block: types_pb2.VectorBlock,
    vectors: NDArray[np.float32],
    dtype: types_pb2.DType.ValueType,
) -> None:
    """Writes rows into a block of a response, for a message that is put together is copied.

    Args:
        block: Empty.
        vectors: float32 (count, dim), finite.
        dtype: As `check_dtype` gave it; types.proto defines each.

    Raises:
        InvalidArgument: an element is too large for float16.
    """
    block.dtype = dtype
    block.count, block.dim = vectors.shape
    if dtype == INT8:
        codes, scales = to_int8(vectors)
        block.data, block.scales = codes.tobytes(), scales.astype("<f4", copy=False).tobytes()
    elif dtype == BINARY:
        block.data = np.packbits(vectors > 0, axis=1).tobytes()
    elif dtype == FLOAT16:
        block.data = to_float16(vectors).astype("<f2", copy=False).tobytes()
    else:
        block.data = vectors.astype("<f4", copy=False).tobytes()


def to_int8(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric, with a scale for each row.

    Returns:
        int8 (count, dim) in [-127, 127], and scales, float32 (count,): the largest absolute
        value of the row / 127.
    """
    scales = np.abs(vectors).max(axis=1) / np.float32(INT8_LARGEST)
    scales[scales < np.finfo(np.float32).tiny] = 0  # below it, a scale has no precision left
    steps = np.where(scales > 0, scales, np.inf)[:, None]
    return np.rint(vectors / steps).astype(np.int8), scales


def to_float16(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rounds to half precision.

    Raises:
        InvalidArgument: an element is too large, which only raw features can be.
    """
    if vectors.size and float(np.abs(vectors).max()) > FLOAT16_LARGEST:
        raise InvalidArgument.field(
            "dtype", "a raw feature is beyond float16: ask for float32 or int8"
        )
    return vectors.astype(np.float16)


def item_errors(errors: Mapping[int, HotclipError]) -> list[types_pb2.ItemError]:
    """Failed items by position, in order."""
    return [
        types_pb2.ItemError(
            index=index,
            code=code_pb2.Code.Value(error.code.name),
            reason=error.reason,
            message=error.message,
        )
        for index, error in sorted(errors.items())
    ]
