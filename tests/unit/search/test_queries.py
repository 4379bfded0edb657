"""Queries made of several things."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.errors import FailedPrecondition, InvalidArgument
from hotclip_server.search.points import Space
from hotclip_server.search.queries import combine, parse_query

DIM = 6
SPACE = Space(space_id="s", dim=DIM)
weights = st.floats(0.01, 100) | st.floats(-100, -0.01)


def vector(seed: int) -> search_pb2.Vector:
    row = np.random.default_rng(seed).standard_normal(DIM)
    return search_pb2.Vector(data=row.astype("<f4").tobytes(), space_id="s")


def combination(*parts: tuple[search_pb2.Query, float | None]) -> search_pb2.Query:
    made = [search_pb2.WeightedQuery(query=query, weight=weight) for query, weight in parts]
    return search_pb2.Query(combination=search_pb2.Combination(parts=made))


def given_vector(seed: int) -> search_pb2.Query:
    return search_pb2.Query(vector=vector(seed))


@given(st.lists(st.lists(weights, min_size=1, max_size=5), min_size=1, max_size=4))
def test_hits_are_in_the_order_of_the_weighted_sum_of_cosines(told: list[list[float]]) -> None:
    queries = [
        combination(*((given_vector(10 * at + i), w) for i, w in enumerate(of_query)))
        for at, of_query in enumerate(told)
    ]
    parsed = [parse_query(query, SPACE, f"queries[{at}]") for at, query in enumerate(queries)]
    rows = np.stack([part.vector for query in parsed for part in query.parts])
    found = combine(parsed, rows)
    assert (found.shape, found.dtype) == ((len(told), DIM), np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    stored = np.random.default_rng(1).standard_normal((50, DIM))
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    for query, row in zip(parsed, found, strict=True):
        sums = sum(part.weight * (stored @ part.vector) for part in query.parts)
        # One factor for every stored vector, so the order is the same.
        scores = stored @ row
        factor = float(scores @ sums / (sums @ sums))
        assert factor > 0
        np.testing.assert_allclose(scores, factor * sums, atol=1e-4)


def test_plain_queries_stay_as_they_are() -> None:
    queries = [
        given_vector(1),
        search_pb2.Query(point_id="p"),
        search_pb2.Query(item=EncodeItem(text="a")),
    ]
    parsed = [parse_query(query, SPACE, f"queries[{at}]") for at, query in enumerate(queries)]
    assert [[part.field for part in query.parts] for query in parsed] == [
        ["queries[0].vector"],
        ["queries[1].point_id"],
        ["queries[2].item"],
    ]
    assert [query.point_ids for query in parsed] == [[], ["p"], []]
    rows = np.eye(3, DIM, dtype=np.float32)
    assert combine(parsed, rows) is rows


def test_parts_name_points_and_have_weights() -> None:
    text = search_pb2.Query(item=EncodeItem(text="a"))
    point = search_pb2.Query(point_id="p")
    parsed = parse_query(combination((text, None), (point, -0.5)), SPACE, "queries[4]")
    assert [(part.field, part.weight) for part in parsed.parts] == [
        ("queries[4].combination.parts[0].query.item", 1.0),
        ("queries[4].combination.parts[1].query.point_id", -0.5),
    ]
    assert parsed.point_ids == ["p"]
    alone = parse_query(combination((given_vector(1), -2.0)), SPACE, "queries[0]")
    row = alone.parts[0].vector
    np.testing.assert_allclose(combine([alone], row[None]), -row[None], atol=1e-6)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (search_pb2.Query(), "queries[0]"),
        (search_pb2.Query(item=EncodeItem()), "queries[0]"),
        (search_pb2.Query(point_id=""), "queries[0]"),
        (combination(), "queries[0].combination.parts"),
        (combination(*[(given_vector(1), 1.0)] * 17), "queries[0].combination.parts"),
        (
            combination((given_vector(1), 1.0), (search_pb2.Query(), 1.0)),
            "queries[0].combination.parts[1].query",
        ),
        (
            combination((combination((given_vector(1), 1.0)), 1.0)),
            "queries[0].combination.parts[0].query",
        ),
        *(
            (combination((given_vector(1), weight)), "queries[0].combination.parts[0].weight")
            for weight in (0.0, math.nan, math.inf)
        ),
        (
            combination((search_pb2.Query(vector=search_pb2.Vector(space_id="s")), 1.0)),
            "queries[0].combination.parts[0].query.vector.data",
        ),
    ],
)
def test_what_is_wrong_is_named(query: search_pb2.Query, field: str) -> None:
    with pytest.raises(InvalidArgument) as bad:
        parse_query(query, SPACE, "queries[0]")
    assert [violation.field for violation in bad.value.violations] == [field]


def test_parts_of_another_space_or_without_a_sum_are_refused() -> None:
    other = search_pb2.Vector(data=vector(1).data, space_id="elsewhere")
    with pytest.raises(FailedPrecondition) as refused:
        parse_query(combination((search_pb2.Query(vector=other), 1.0)), SPACE, "queries[0]")
    assert refused.value.reason == "SPACE_MISMATCH"
    nothing = combination((given_vector(1), 1.5), (given_vector(1), -1.5))
    parsed = parse_query(nothing, SPACE, "queries[0]")
    rows = np.stack([part.vector for part in parsed.parts])
    with pytest.raises(InvalidArgument, match="cancel") as bad:
        combine([parsed], rows)
    assert [v.field for v in bad.value.violations] == ["queries[0].combination.parts"]
