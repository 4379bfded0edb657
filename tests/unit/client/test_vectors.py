"""What the server packs, as the client's user gets it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from hotclip import Embeddings, Vector
from hotclip._embeddings import Timings
from hotclip._encoding import EncodePlan, options
from hotclip._points import vector_of
from hotclip._server import Limits
from hotclip._vectors import unpack, wire_dtype
from hotclip.errors import DataLoss, FailedPrecondition, InvalidArgument, ItemError
from hotclip_proto.v1 import encode_pb2, types_pb2
from hotclip_server.services.vectors import BINARY, FLOAT32, INT8, pack_into

DTYPES = ["float32", "float16", "int8", "binary"]
UNIT = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 30)),
    elements=st.floats(-1, 1, width=32).filter(lambda x: abs(x) > 1e-3),
)


def embeddings(rows: NDArray[np.float32], dtype: str) -> Embeddings:
    block = types_pb2.VectorBlock()
    pack_into(block, rows, wire_dtype(dtype))
    return Embeddings.of_rows(unpack(block), version="v", space_id="s")


@given(UNIT)
def test_every_type_comes_back(rows: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(embeddings(rows, "float32").dequantize(), rows)
    np.testing.assert_allclose(embeddings(rows, "float16").dequantize(), rows, atol=1e-3)
    codes = embeddings(rows, "int8")
    assert (codes.dtype, codes.kind, codes.dim) == (np.int8, "int8", rows.shape[1])
    np.testing.assert_allclose(codes.dequantize(), rows, atol=1 / 254 + 1e-6)
    signs = embeddings(rows, "binary")
    assert (signs.dtype, signs.kind, signs.dim) == (np.uint8, "binary", rows.shape[1])
    expected = np.sign(rows) / np.sqrt(np.float32(rows.shape[1]))
    np.testing.assert_allclose(signs.dequantize(), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_rows_that_are_taken_keep_their_scales(dtype: str) -> None:
    rows = np.random.default_rng(0).standard_normal((9, 9)).astype(np.float32)
    rows *= np.arange(1, 10, dtype=np.float32)[:, None]
    whole = embeddings(rows, dtype)
    exact = np.asarray(whole.dequantize())
    mask = np.arange(9) % 2 == 0
    for key in (3, -1, slice(2, 7), [5, 1], mask, np.array([[0, 1], [2, 3]]), ..., slice(None)):
        taken = whole[key]
        assert (taken.version, taken.dim) == ("v", 9)
        if np.ndim(key) < 2:
            np.testing.assert_array_equal(taken.dequantize(), exact[key])
    np.testing.assert_array_equal([row.dequantize() for row in whole], exact)
    np.testing.assert_array_equal(whole.copy()[3:].dequantize(), exact[3:])
    for lost in (whole.T, whole[:, :9], whole[:, 1], whole.view(), whole[2:4, :]):
        with pytest.raises(FailedPrecondition, match="whole rows"):
            lost.dequantize()


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_keep_all(dtype: str) -> None:
    whole = embeddings(np.random.default_rng(0).standard_normal((3, 9), np.float32), dtype)
    whole.errors = (ItemError(1, InvalidArgument.code, "BAD", "bad"),)
    whole.timings = Timings(queue_s=1.0)
    exact = np.asarray(whole.dequantize())
    for made in (whole.copy(), copy.copy(whole), copy.deepcopy(whole), copy.deepcopy([whole])[0]):
        assert (made.kind, made.dim, made.version) == (whole.kind, 9, "v")
        assert (made.errors, made.timings) == (whole.errors, whole.timings)
        assert not np.shares_memory(made, whole)
        if made.scales is not None:
            made.scales[2] = 0
        np.testing.assert_array_equal(made[:2].dequantize(), exact[:2])
    np.testing.assert_array_equal(whole.dequantize(), exact)
    one = copy.copy(whole[1])
    np.testing.assert_array_equal(one.dequantize(), exact[1])


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_codes_stay_codes_in_any_element_type(dtype: str) -> None:
    whole = embeddings(np.ones((2, 9), np.float32), dtype)
    for made in (whole.astype(np.float32), whole.view(np.bool_), whole.astype(np.int16)[0]):
        assert (made.kind, made.dim) == (dtype, 9)
        with pytest.raises(FailedPrecondition, match="whole rows"):
            made.dequantize()
    floats = embeddings(np.ones((2, 9), np.float32), "float32").astype(np.float16)
    assert (floats.kind, floats.version) == ("float", "v")
    assert floats.dequantize().tolist() == np.ones((2, 9)).tolist()


def test_other_views_of_quantised_rows_are_numpys() -> None:
    whole = embeddings(np.ones((2, 8), np.float32), "binary")
    assert int(np.bitwise_xor(whole[0], whole[1]).sum()) == 0
    assert whole[0, 0] == 255
    assert whole.dequantize() @ whole.dequantize()[0] == pytest.approx([1, 1])


def test_a_vector_to_store_is_never_codes() -> None:
    row = np.array([3, -4, 0.5], np.float32)
    sent = np.frombuffer(vector_of(embeddings(row[None], "int8")[0], "x").data, "<f4")
    np.testing.assert_allclose(sent, row, atol=0.02)
    signs = np.frombuffer(vector_of(embeddings(row[None], "binary")[0], "x").data, "<f4")
    np.testing.assert_allclose(signs, np.array([1, -1, 1]) / np.sqrt(3), rtol=1e-6)
    assert vector_of(Vector(row, "s"), "x").space_id == "s"


@pytest.mark.parametrize("dtype", DTYPES)
def test_split_calls_put_rows_failures_and_timings_together(dtype: str) -> None:
    texts = ["one", "", "two", "bad", "three", "four", ""]
    told = options(
        model="",
        version="",
        expected_space_id="",
        dtype=dtype,
        dimensions=5,
        normalize=True,
        truncate="start",
        priority="bulk",
        on_error="return",
        resize="server",
    )
    plan = EncodePlan(texts, told, Limits(max_items_per_request=3))
    wanted = {}
    for chunk in plan.chunks():
        request = plan.request(chunk)
        assert (request.dimensions, request.truncate) == (5, types_pb2.TRUNCATION_START)
        reply = encode_pb2.EncodeResponse(version="v", space_id="s")
        rows = np.random.default_rng(chunk.start).standard_normal((len(chunk.items), 5), np.float32)
        for at, item in enumerate(request.items):
            wanted[item.text] = rows[at]
            if item.text == "bad":
                rows[at] = 0
                reply.errors.add(index=at, code=3, reason="BAD")
        pack_into(reply.vectors, rows, request.dtype)
        reply.timings.queue_us, reply.timings.total_us = 500_000, 1_000_000
        plan.add(chunk, reply)
    whole = plan.result()
    assert [e.index for e in whole.errors] == [1, 3, 6]
    assert whole.timings is not None
    assert (whole.timings.queue_s, whole.timings.total_s) == (1.0, 2.0)
    vectors = whole.dequantize()
    assert not vectors[[1, 3, 6]].any()
    for at, text in enumerate(texts):
        if text and text != "bad":
            assert float(np.sign(vectors[at]) @ np.sign(wanted[text])) == 5
    assert whole.flags.writeable


def test_a_damaged_block_is_noticed() -> None:
    short = types_pb2.VectorBlock(data=b"123", dtype=FLOAT32, dim=1, count=1)
    unscaled = types_pb2.VectorBlock(data=b"12", dtype=INT8, dim=2, count=1)
    long = types_pb2.VectorBlock(data=b"12", dtype=BINARY, dim=8, count=1)
    unknown = types_pb2.VectorBlock(data=b"1234", dim=1, count=1)
    for block in (short, unscaled, long, unknown):
        with pytest.raises(DataLoss):
            unpack(block)


@pytest.mark.parametrize("dtype", ["float64", "uint8", "bits", object, ">f8"])
def test_other_types_are_refused_here(dtype: str) -> None:
    with pytest.raises(InvalidArgument, match="dtype"):
        wire_dtype(dtype)
    assert wire_dtype(np.float16) == types_pb2.D_TYPE_FLOAT16
