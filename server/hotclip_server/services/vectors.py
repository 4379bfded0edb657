"""Vectors and item errors as they go over the wire."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from google.rpc import code_pb2
from numpy.typing import NDArray

from hotclip_proto.v1 import types_pb2
from hotclip_server.errors import HotclipError, InvalidArgument

_ELEMENTS = {
    types_pb2.D_TYPE_UNSPECIFIED: (types_pb2.D_TYPE_FLOAT32, "<f4"),
    types_pb2.D_TYPE_FLOAT32: (types_pb2.D_TYPE_FLOAT32, "<f4"),
    types_pb2.D_TYPE_FLOAT16: (types_pb2.D_TYPE_FLOAT16, "<f2"),
}


def check_dtype(dtype: types_pb2.DType.ValueType) -> None:
    """Refuses element types that this server does not know.

    Raises:
        InvalidArgument: names the field.
    """
    if dtype not in _ELEMENTS:
        raise InvalidArgument.field("dtype", f"unknown element type {dtype}")


def pack(vectors: NDArray[np.float32], dtype: types_pb2.DType.ValueType) -> types_pb2.VectorBlock:
    """Packs float32 (count, dim) row after row, little-endian, as `dtype`."""
    sent, element = _ELEMENTS[dtype]
    count, dim = vectors.shape
    data = vectors.astype(element, copy=False).tobytes()
    return types_pb2.VectorBlock(data=data, dtype=sent, dim=dim, count=count)


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
