"""Combined queries, payloads and stored points, between Python and the wire."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from hotclip import Combined, Image, PointId, StoredPoint, Vector
from hotclip._payloads import payload_in, payload_out
from hotclip._queries import SearchPlan, query_of
from hotclip._server import Limits
from hotclip._stored import stored_points
from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import search_pb2, types_pb2

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.", max_size=3), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text("abc", max_size=3), values, max_size=4))
def test_payloads_come_back(payload: dict[str, object]) -> None:
    packed = payload_in(payload, "payload")
    assert payload_out(packed) == payload == json_format.MessageToDict(packed)


def test_whole_numbers_are_int_and_an_empty_value_is_none() -> None:
    packed = payload_in({"a": 3.0, "b": 1e300}, "payload")
    packed.fields["c"].CopyFrom(struct_pb2.Value())
    out = payload_out(packed)
    assert out == {"a": 3, "b": 1e300, "c": None}
    assert [type(out[key]) for key in "ab"] == [int, float]
    with pytest.raises(InvalidArgument, match=r"points\[0\]\.payload"):
        payload_in({"a": object()}, "points[0].payload")


def test_parts_are_packed_with_their_weights() -> None:
    vector = Vector([3.0, 4.0], "s")
    packed = query_of(Combined(["a", (PointId("p"), -2), (vector, 0.5)]), "query")
    text, point, given_ = packed.combination.parts
    assert (text.query.item.text, text.weight) == ("a", 1.0)
    assert (point.query.point_id, point.weight) == ("p", -2.0)
    assert (given_.query.vector.space_id, given_.weight) == ("s", 0.5)
    for bad in (Combined([Combined(["a"])]), Combined([("a", "b")]), Combined([("a", True)])):
        with pytest.raises(InvalidArgument, match=r"query\.parts\[0\]"):
            query_of(bad, "query")
    with pytest.raises(InvalidArgument):
        query_of(Combined([()]), "query")


@pytest.mark.parametrize(
    ("query", "reads"),
    [
        (Combined(["a", (PointId("p"), -1.0)]), False),
        (Combined(["a", (np.zeros((2, 2, 3), np.uint8), 0.5)]), True),
        (Vector([1.0], "s"), False),
        ([Combined(["a"]), Image.from_bytes(b"x")], True),
    ],
)
def test_what_must_be_read_is_read_off_the_loop(query: object, reads: bool) -> None:
    plan = SearchPlan(
        "c",
        query,
        limit=3,
        conditions=None,
        score_threshold=None,
        exact=False,
        expected_space_id="",
    )
    assert plan.reads is reads
    (request,) = plan.requests(Limits())
    assert len(request.queries) == (len(query) if isinstance(query, list) else 1)


def test_stored_points_are_items_again() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    tensor = types_pb2.ImageTensor(data=pixels.tobytes(), height=2, width=2)
    sources = [
        types_pb2.EncodeItem(text="a"),
        types_pb2.EncodeItem(image=b"png"),
        types_pb2.EncodeItem(tensor=tensor),
    ]
    messages = [search_pb2.StoredPoint(id=f"{i}", source=s) for i, s in enumerate(sources)]
    row = np.array([0.6, 0.8], "<f4")
    messages[0].vector.CopyFrom(search_pb2.Vector(data=row.tobytes(), space_id="s"))
    messages.append(search_pb2.StoredPoint(id="plain", reference="s3://a"))
    text, image, pixel, plain = stored_points(messages)
    assert text.source == "a"
    assert text.vector is not None
    np.testing.assert_array_equal(text.vector.values, row)
    assert text.vector.space_id == "s"
    assert isinstance(image.source, Image)
    assert isinstance(pixel.source, Image)
    assert (image.source.load(), pixel.source.load()) == (sources[1], sources[2])
    assert plain == StoredPoint(id="plain", payload={}, reference="s3://a")
    assert repr(text) == "StoredPoint(id='0', payload={}, vector, source)"
