"""Rows as they go over the wire, against the definitions of types.proto, element by element."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from hotclip_proto.v1 import types_pb2
from hotclip_server.errors import InvalidArgument
from hotclip_server.services.vectors import (
    BINARY,
    FLOAT16,
    FLOAT32,
    INT8,
    check_dtype,
    pack_into,
)

ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 35)),
    elements=st.floats(-60_000, 60_000, width=32),
)


def packed(rows: NDArray[np.float32], dtype: types_pb2.DType.ValueType) -> types_pb2.VectorBlock:
    block = types_pb2.VectorBlock()
    pack_into(block, rows, dtype)
    assert (block.count, block.dim, block.dtype) == (*rows.shape, dtype)
    return block


@given(ROWS)
def test_floats(rows: NDArray[np.float32]) -> None:
    full = np.frombuffer(packed(rows, FLOAT32).data, "<f4").reshape(rows.shape)
    np.testing.assert_array_equal(full, rows)
    half = np.frombuffer(packed(rows, FLOAT16).data, "<f2").reshape(rows.shape)
    np.testing.assert_allclose(half, rows, rtol=2**-11, atol=2**-24)


@given(ROWS)
def test_int8_is_off_by_half_a_scale(rows: NDArray[np.float32]) -> None:
    block = packed(rows, INT8)
    codes = np.frombuffer(block.data, "i1").reshape(rows.shape)
    scales = np.frombuffer(block.scales, "<f4")
    for row, code, scale in zip(rows, codes, scales, strict=True):
        largest = max(abs(float(value)) for value in row)
        if largest < 127 * np.finfo(np.float32).tiny:
            assert not code.any()
        assert scale == pytest.approx(largest / 127, rel=1e-6, abs=1.2e-38)
        for value, integer in zip(row, code, strict=True):
            assert -127 <= integer <= 127
            assert abs(float(value) - int(integer) * float(scale)) <= 0.5001 * scale + 2e-36


@given(ROWS)
def test_binary_is_a_sign_a_bit_first_in_the_highest(rows: NDArray[np.float32]) -> None:
    data = packed(rows, BINARY).data
    width = math.ceil(rows.shape[1] / 8)
    assert len(data) == len(rows) * width
    for number, row in enumerate(rows):
        for at in range(8 * width):
            bit = data[number * width + at // 8] >> (7 - at % 8) & 1
            assert bit == (at < len(row) and bool(row[at] > 0))


def test_rows_of_failed_items_are_zero_in_every_type() -> None:
    rows = np.zeros((2, 9), np.float32)
    for dtype in (FLOAT32, FLOAT16, INT8, BINARY):
        block = packed(rows, dtype)
        assert not any(block.data)
        assert not any(block.scales)


def test_a_feature_that_float16_cannot_hold_is_refused() -> None:
    rows = np.array([[1, 1e5]], np.float32)
    with pytest.raises(InvalidArgument, match="beyond float16"):
        packed(rows, FLOAT16)
    packed(rows, INT8)


def test_unknown_types_are_refused_by_name() -> None:
    assert check_dtype(types_pb2.D_TYPE_UNSPECIFIED) == FLOAT32
    with pytest.raises(InvalidArgument) as caught:
        check_dtype(99)  # type: ignore[arg-type]  # as a newer client may send
    assert [v.field for v in caught.value.violations] == ["dtype"]
