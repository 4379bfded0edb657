"""Values that no field can have: refused before anything is sent, by the name of the argument."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from hotclip import (
    AsyncClient,
    Between,
    Choice,
    Client,
    Combined,
    Filter,
    Point,
    PointId,
    Vector,
)
from hotclip._payloads import payload_in
from hotclip._points import point_of
from hotclip._queries import query_of
from hotclip.errors import InvalidArgument

NOBODY = "127.0.0.1:1"
HUGE = 2**80

Call = Callable[[Any], Any]

CALLS: list[tuple[str, Call]] = [
    ("limit", lambda c: c.search("c", "fox", limit=-1)),
    ("limit", lambda c: c.search("c", "fox", limit=0)),
    ("limit", lambda c: c.search("c", "fox", limit=HUGE)),
    ("limit", lambda c: c.search("c", "fox", limit="ten")),
    ("score_threshold", lambda c: c.search("c", "fox", score_threshold="high")),
    ("exact", lambda c: c.search("c", "fox", exact="yes")),
    ("expected_space_id", lambda c: c.search("c", "fox", expected_space_id=7)),
    ("collection", lambda c: c.search(7, "fox")),
    ("filter.must[0].equals_int", lambda c: c.search("c", "fox", filter={"n": HUGE})),
    ("filter.must[0].key", lambda c: c.count_points("c", filter={7: "a"})),
    ("filter.must[0]", lambda c: c.count_points("c", filter=Filter(must=["a"]))),
    ("filter.must_not[0].gte", lambda c: c.count_points("c", filter=beyond("a"))),
    ("filter", lambda c: c.count_points("c", filter="kind = fox")),
    ("candidates", lambda c: c.rank("a", "fox")),
    ("candidates", lambda c: c.rank("a", 7)),
    ("candidates", lambda c: c.rank("a", [])),
    ("name", lambda c: c.create_collection(7)),
    ("name", lambda c: c.create_collection("\ud800")),
    ("keep_sources", lambda c: c.create_collection("c", keep_sources="yes")),
    ("ids", lambda c: c.get_points("c", "fox")),
    ("ids", lambda c: c.get_points("c", [7])),
    ("ids", lambda c: c.delete_points("c", "fox")),
    ("ids", lambda c: c.delete_points("c", [7])),
    ("page_size", lambda c: listed(c.list_points("c", page_size=-1))),
    ("vectors", lambda c: listed(c.list_points("c", vectors="yes"))),
    ("sample", lambda c: c.fit_bridge("c", "v", sample=-1)),
    ("k", lambda c: c.fit_bridge("c", "v", k=HUGE)),
    ("seed", lambda c: c.fit_bridge("c", "v", seed=0.5)),
    ("version", lambda c: c.reindex("c", 7)),
    ("version", lambda c: c.drop_shadow("c", 7)),
    ("sample", lambda c: c.compare_versions("v", sample=-1)),
    ("share", lambda c: c.set_shadow_traffic("v", share="half")),
    ("lifetime_s", lambda c: c.set_shadow_traffic("v", share=0.5, lifetime_s="long")),
    ("max_choices", lambda c: c.feedback_dataset("c", max_choices=-1)),
    ("start", lambda c: c.feedback_dataset("c", start="yesterday")),
    ("end", lambda c: c.list_feedback("c", end=7)),
    ("choices[0].time", lambda c: c.record_feedback("c", [("a", "b", "now")])),
    ("choices[0].query", lambda c: c.record_feedback("c", [Choice("\ud800", "b")])),
    ("alpha", lambda c: c.merge_versions(["a", "b"], alpha="half")),
    ("version", lambda c: c.get_version(7)),
    ("job", lambda c: c.get_job(7)),
]


def beyond(bound: Any) -> Filter:
    return Filter(must_not=[Between("n", gte=bound)])


def listed(points: Any) -> Any:
    """The first page, of either client."""
    return anext(points) if hasattr(points, "__anext__") else next(points)


async def told(call: Call) -> InvalidArgument:
    async with AsyncClient(NOBODY, timeout=5) as client:
        with pytest.raises(InvalidArgument) as bad:
            await call(client)
    return bad.value


@pytest.mark.parametrize(("field", "call"), CALLS)
def test_both_clients_name_it(field: str, call: Call) -> None:
    with Client(NOBODY, timeout=5) as client, pytest.raises(InvalidArgument) as bad:
        call(client)
    assert [violation.field for violation in bad.value.fields] == [field]
    assert bad.value.fields == asyncio.run(told(call)).fields


@pytest.mark.parametrize(
    ("field", "query"),
    [
        ("query.point_id", PointId(7)),  # type: ignore[arg-type]  # what is tested
        ("query.parts[1].weight", Combined(["a", ("b", 10**400)])),
        ("query", Vector(["a", "b"], "s")),
        ("query", Vector([[1.0], [1.0, 2.0]], "s")),
    ],
)
def test_queries(field: str, query: Any) -> None:
    with pytest.raises(InvalidArgument) as bad:
        query_of(query, "query")
    assert [violation.field for violation in bad.value.fields] == [field]


@pytest.mark.parametrize(
    ("field", "point"),
    [
        ("points[0].id", Point("\ud800", "a")),
        ("points[0].reference", Point("a", "a", reference=7)),  # type: ignore[arg-type]  # as above
        ("points[0].payload.n", ("a", "a", {"n": 2**53 + 1})),
        ("points[0].payload.o.x[1]", ("a", "a", {"o": {"x": [1, float("nan")]}})),
        ("points[0].payload.when", ("a", "a", {"when": datetime.now(UTC)})),
        ("points[0].payload", ("a", "a", ["not an object"])),
        ("points[0].payload", ("a", "a", {"a": "\ud800"})),
        ("points[0].payload", ("a", "a", {7: "a"})),
        ("points[0].content", ("a", Vector(np.zeros((2, 2)), "s"))),
    ],
)
def test_points(field: str, point: Any) -> None:
    with pytest.raises(InvalidArgument) as bad:
        point_of(point, "points[0]")
    assert [violation.field for violation in bad.value.fields] == [field]


def test_a_payload_in_itself_is_refused() -> None:
    payload: dict[str, Any] = {}
    payload["again"] = payload
    with pytest.raises(InvalidArgument, match=r"points\[0\]\.payload"):
        payload_in(payload, "points[0].payload")
