"""Payloads, filters, vectors and frames: whatever comes in, nothing but clear errors goes out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import example, given
from hypothesis import strategies as st

from hotclip_proto.v1 import search_pb2
from hotclip_server.errors import FailedPrecondition, InvalidArgument
from hotclip_server.search import wire
from hotclip_server.search.filters import FieldTest, filter_from_proto, json_path
from hotclip_server.search.payloads import (
    MAX_DEPTH,
    payload_from_struct,
    payload_to_struct,
    write_payload,
)
from hotclip_server.search.points import Space, parse_points, parse_vector
from hotclip_server.search.query import MARK_IN_JSON, from_engine_value, to_engine_value

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
payloads = st.dictionaries(text, json_values, max_size=5)
SPACE = Space(space_id="s", dim=3)


@given(payloads)
def test_payloads_survive_the_wire(payload: dict[str, object]) -> None:
    struct = payload_to_struct(payload)
    assert payload_from_struct(struct, 1 << 20) == payload


@given(payloads)
def test_payloads_survive_the_engine(payload: dict[str, object]) -> None:
    stored = to_engine_value(payload)
    assert MARK_IN_JSON in json.dumps(stored).encode() or stored == payload
    back = from_engine_value(stored)
    assert back == payload
    assert repr(back) == repr(payload)  # True is not 1.


def test_whole_numbers_are_stored_as_such() -> None:
    struct = Struct()
    struct.update({"a": 3, "b": 3.5, "c": [True, None]})
    payload = payload_from_struct(struct, 100)
    assert [type(payload[key]) for key in "ab"] == [int, float]
    assert payload["c"] == [True, None]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_not_are_refused(number: float) -> None:
    struct = Struct()
    struct.update({"a": {"b": [number]}})
    with pytest.raises(ValueError, match="finite"):
        payload_from_struct(struct, 100)


def test_a_payload_may_have_exactly_its_limit() -> None:
    struct = Struct()
    struct.update({"a": "é"})
    assert payload_from_struct(struct, len('{"a":"é"}'.encode()))
    with pytest.raises(OverflowError):
        payload_from_struct(struct, len('{"a":"é"}'.encode()) - 1)


@pytest.mark.parametrize("lists", [False, True])
def test_a_payload_is_not_deeper_than_every_answer_can_hold(lists: bool) -> None:
    def nested(depth: int) -> Struct:
        value: object = 1
        for _ in range(depth - 1):
            value = [value] if lists else {"a": value}
        struct = Struct()
        struct.update({"a": value})
        return struct

    payload = payload_from_struct(nested(MAX_DEPTH), 1 << 20)
    answer = search_pb2.SearchResponse()
    write_payload(answer.results.add().hits.add().payload, payload)
    assert search_pb2.SearchResponse.FromString(answer.SerializeToString()) == answer
    with pytest.raises(ValueError, match="deep"):
        payload_from_struct(nested(MAX_DEPTH + 1), 1 << 20)


@given(text)
def test_a_key_is_a_path_or_an_error(key: str) -> None:
    try:
        path = json_path(key)
    except ValueError:
        assert '"' in key or "\\" in key or not all(key.split("."))
    else:
        assert path.replace('"', "") == key


def test_filters_parse() -> None:
    message = search_pb2.Filter()
    message.must.add(key="a.b", equals_int=3)
    message.should.add(key="c d", any_of=search_pb2.StringList(values=["x", "y"]))
    message.must_not.add(key="e", range=search_pb2.Range(gte=0, lt=2))
    parsed = filter_from_proto(message)
    assert parsed is not None
    assert parsed.must == (FieldTest(key="a.b", values=(3,)),)
    assert parsed.should == (FieldTest(key="c d", values=("x", "y")),)
    assert parsed.must_not == (FieldTest(key="e", gte=0, lt=2),)
    assert filter_from_proto(search_pb2.Filter()) is None


@pytest.mark.parametrize(
    ("condition", "field"),
    [
        (search_pb2.Condition(key="", equals_int=1), "filter.must[0].key"),
        (search_pb2.Condition(key="a..b", equals_int=1), "filter.must[0].key"),
        (search_pb2.Condition(key='a"b', equals_int=1), "filter.must[0].key"),
        (search_pb2.Condition(key="a"), "filter.must[0]"),
        (search_pb2.Condition(key="a", equals_int=2**53 + 1), "filter.must[0].equals_int"),
        (search_pb2.Condition(key="a", range=search_pb2.Range()), "filter.must[0].range"),
        (
            search_pb2.Condition(key="a", range=search_pb2.Range(gt=math.nan)),
            "filter.must[0].range",
        ),
    ],
)
def test_bad_conditions_name_their_field(condition: search_pb2.Condition, field: str) -> None:
    with pytest.raises(InvalidArgument) as bad:
        filter_from_proto(search_pb2.Filter(must=[condition]))
    assert [violation.field for violation in bad.value.violations] == [field]


@example(b"\x00\x00\x81\x7f" * 3)
@given(st.binary(max_size=20) | st.binary(min_size=12, max_size=12))
def test_any_bytes_are_a_unit_vector_or_an_error(data: bytes) -> None:
    message = search_pb2.Vector(data=data, space_id="s")
    with np.errstate(invalid="ignore"):  # signalling NaN
        values = np.frombuffer(data[: len(data) // 4 * 4], "<f4").astype(float)
    good = len(data) == 12 and 0 < np.linalg.norm(values) < np.inf
    if good:
        assert np.linalg.norm(parse_vector(message, SPACE, "v")) == pytest.approx(1.0, abs=1e-5)
    else:
        with pytest.raises(InvalidArgument, match=r"v\.data"):
            parse_vector(message, SPACE, "v")


def test_a_vector_names_its_space() -> None:
    with pytest.raises(InvalidArgument, match="space_id"):
        parse_vector(search_pb2.Vector(data=bytes(12)), SPACE, "v")
    with pytest.raises(FailedPrecondition) as refused:
        parse_vector(search_pb2.Vector(data=bytes(12), space_id="t"), SPACE, "v")
    assert refused.value.reason == "SPACE_MISMATCH"


def test_points_keep_their_order() -> None:
    points = [search_pb2.Point(id=i) for i in "aba"]
    for at, point in enumerate(points):
        point.item.text = f"{at}"
    good, errors = parse_points(points, SPACE, 100)
    assert [(p.id, p.index) for p in good] == [("a", 0), ("b", 1), ("a", 2)]
    assert errors == {}


@given(payloads, st.binary(max_size=50), st.integers(0, 200))
def test_frames_are_taken_whole(header: dict[str, object], body: bytes, cut: int) -> None:
    frame = wire.pack(header, body)
    buffer, part = bytearray(frame), frame[: min(cut, len(frame) - 1)]
    buffer += part
    assert wire.take(buffer) == (header, body)
    assert wire.take(buffer) is None
    assert buffer == part
    buffer += frame[len(part) :]
    assert wire.take(buffer) == (header, body)
    assert not buffer
