"""Vectors that know which version made them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hotclip.errors import DataLoss, InvalidArgument, ItemError
from hotclip_proto.v1 import types_pb2

_WIRE: dict[types_pb2.DType.ValueType, np.dtype[Any]] = {
    types_pb2.D_TYPE_FLOAT32: np.dtype("<f4"),
    types_pb2.D_TYPE_FLOAT16: np.dtype("<f2"),
}


class Embeddings(np.ndarray[Any, np.dtype[Any]]):
    """Unit-length vectors, wholly of one version: (n, dim), or (dim,) for a single item.

    An ordinary numpy array (float32 or float16) with more attributes. Slices and copies
    keep them; results of arithmetic are plain arrays, for they are of no version.

    Attributes:
        version: Id of the version that made every row.
        space_id: Space of the rows; only vectors of one space may be compared.
        model: Name of the model.
        errors: Failed items of the call that made the array (their rows are zero);
            empty on slices.
    """

    version: str
    space_id: str
    model: str
    errors: tuple[ItemError, ...]

    def __new__(
        cls,
        values: NDArray[Any],
        *,
        version: str,
        space_id: str,
        model: str = "",
        errors: tuple[ItemError, ...] = (),
    ) -> Embeddings:
        array = np.asarray(values).view(cls)
        array.version, array.space_id, array.model = version, space_id, model
        array.errors = errors
        return array

    def __array_finalize__(self, source: NDArray[Any] | None) -> None:
        self.version = getattr(source, "version", "")
        self.space_id = getattr(source, "space_id", "")
        self.model = getattr(source, "model", "")
        self.errors = ()

    def __reduce__(self) -> tuple[Any, ...]:  # pickled for another process it stays known
        made: tuple[Any, ...] = super().__reduce__()  # type: ignore[assignment]  # not a str here
        return *made[:2], (made[2], self.__dict__)

    def __setstate__(self, state: Any) -> None:
        array, attributes = state
        super().__setstate__(array)
        self.__dict__.update(attributes)

    def __array_wrap__(
        self,
        array: NDArray[Any],
        context: Any = None,
        return_scalar: bool = False,
    ) -> Any:
        plain = np.asarray(array)
        return plain[()] if return_scalar or plain.ndim == 0 else plain


def wire_dtype(dtype: DTypeLike) -> types_pb2.DType.ValueType:
    """The wire's name of float32 or float16."""
    wanted = np.dtype(dtype).newbyteorder("<")
    for name, known in _WIRE.items():
        if wanted == known:
            return name
    raise InvalidArgument.field("dtype", f"{np.dtype(dtype)} is neither float32 nor float16")


def unpack(block: types_pb2.VectorBlock) -> NDArray[Any]:
    """Rows of a block, (count, dim), in native byte order; a copy, so it can be written.

    Raises:
        DataLoss: The block's length is not what its shape says.
    """
    dtype = _WIRE.get(block.dtype, _WIRE[types_pb2.D_TYPE_FLOAT32])
    if len(block.data) != block.count * block.dim * dtype.itemsize:
        raise DataLoss(
            f"{len(block.data)} bytes are not {block.count} x {block.dim} of {dtype.name}",
            reason="VECTOR_BLOCK_LENGTH",
        )
    rows = np.frombuffer(block.data, dtype=dtype).reshape(block.count, block.dim)
    native: NDArray[Any] = rows.astype(dtype.newbyteorder("="))
    return native
