"""Cutting lists into requests and putting answers together, without a network."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pil

from hotclip import Image
from hotclip._encoding import Chunk, EncodePlan, Options, chunks, options, preprocessing_of
from hotclip._points import UpsertTally, point_blocks
from hotclip._queries import SearchPlan
from hotclip._resize import ImagePreprocessing
from hotclip._server import Limits, ServerInfo, server_info
from hotclip.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    HotclipError,
    InvalidArgument,
    ItemsFailed,
    NotFound,
    SpaceMismatch,
)
from hotclip_proto.v1 import encode_pb2, search_pb2, server_pb2, types_pb2

TEXTS = st.lists(st.text(max_size=40), min_size=1, max_size=60)
LIMITS = st.builds(
    Limits,
    max_items_per_request=st.integers(1, 9),
    max_message_bytes=st.integers(1, 400).map(lambda n: n + (64 << 10)),
)


def told(on_error: str = "return", version: str = ""):
    return options(
        model="",
        version=version,
        expected_space_id="",
        dtype=np.float32,
        dimensions=None,
        normalize=True,
        truncate="end",
        priority="bulk",
        on_error=on_error,
        resize="server",
    )


def answer(request: encode_pb2.EncodeRequest, version: str = "v") -> encode_pb2.EncodeResponse:
    """One element a row: the length of the text."""
    rows = np.array([[len(i.text)] for i in request.items], "<f4")
    block = types_pb2.VectorBlock(
        data=rows.tobytes(), dtype=types_pb2.D_TYPE_FLOAT32, dim=1, count=len(rows)
    )
    return encode_pb2.EncodeResponse(vectors=block, version=version, space_id="s")


@given(TEXTS, LIMITS)
def test_chunks_keep_order_and_limits(texts: list[str], limits: Limits) -> None:
    cut = list(chunks(texts, limits))
    room = limits.max_message_bytes - (64 << 10)
    seen = []
    for chunk in cut:
        assert 1 <= len(chunk) <= limits.max_items_per_request
        assert len(chunk.items) <= 1 or chunk.size <= room
        seen += [chunk.start + p for p in chunk.positions] + [e.index for e in chunk.failed]
        assert [i.text for i in chunk.items] == [texts[chunk.start + p] for p in chunk.positions]
    assert sorted(seen) == list(range(len(texts)))


@given(TEXTS, LIMITS)
def test_the_whole_is_what_one_request_would_give(texts: list[str], limits: Limits) -> None:
    plan = EncodePlan(texts, told(), limits)
    for chunk in plan.chunks():
        plan.add(chunk, answer(plan.request(chunk)))
    if not any(texts):
        with pytest.raises(ItemsFailed):
            plan.result()
        return
    whole = plan.result()
    assert whole[:, 0].tolist() == [float(len(t)) for t in texts]
    assert [e.index for e in whole.errors] == [i for i, t in enumerate(texts) if not t]


def test_restarts_are_bounded_and_only_for_a_version_that_is_gone() -> None:
    plan = EncodePlan(["a", "b"], told(), Limits(max_items_per_request=1))
    for _ in range(5):
        first = next(plan.chunks())
        plan.add(first, answer(plan.request(first)))
        with pytest.raises(SpaceMismatch):
            plan.restart(SpaceMismatch("no"))
        plan.restart(NotFound("gone"))
    first = next(plan.chunks())
    plan.add(first, answer(plan.request(first)))
    with pytest.raises(NotFound):
        plan.restart(NotFound("gone"))


def test_a_failure_before_the_first_answer_is_no_reason_to_restart() -> None:
    plan = EncodePlan(["a"], told(), Limits())
    with pytest.raises(NotFound):
        plan.restart(NotFound("no such model"))


def test_answers_of_another_version_or_length_are_refused() -> None:
    plan = EncodePlan(["a", "b"], told(), Limits(max_items_per_request=1))
    first, second = plan.chunks()
    plan.add(first, answer(plan.request(first), "v1"))
    with pytest.raises(DataLoss, match="VERSION_MIXED"):
        plan.add(second, answer(plan.request(second), "v2"))
    with pytest.raises(DataLoss, match="VECTOR_COUNT"):
        plan.add(second, answer(encode_pb2.EncodeRequest(items=[]), "v1"))


GOOD = {
    "on_error": "raise",
    "priority": "bulk",
    "dtype": "float32",
    "truncate": "end",
    "dimensions": 1,
    "normalize": False,
    "resize": "server",
}


@pytest.mark.parametrize(
    "bad",
    [
        {"on_error": "ignore"},
        {"priority": "low"},
        {"dtype": "int16"},
        {"truncate": "middle"},
        {"dimensions": 0},
        {"resize": "nowhere"},
    ],
)
def test_bad_keywords_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        options(model="", version="", expected_space_id="", **(GOOD | bad))  # type: ignore[arg-type]  # what is tested
    assert caught.value.fields[0].field == next(iter(bad))


@given(st.integers(1, 40), st.integers(1, 7))
def test_points_are_cut_and_errors_keep_their_place(count: int, most: int) -> None:
    points = [(f"p{i}", "" if i % 5 == 4 else f"text {i}", {"n": i}) for i in range(count)]
    tally = UpsertTally("return")
    for block in point_blocks(points, Limits(max_items_per_request=most)):
        assert len(block.points) <= most
        bad = types_pb2.ItemError(index=0, code=3, reason="BAD")
        errors = [bad] if block.points and block.points[0].id == "p5" else []
        tally.add(block, search_pb2.UpsertResponse(upserted=len(block.points), errors=errors))
    found = {e.index for e in tally.result().errors}
    assert found - {5} == {i for i in range(count) if i % 5 == 4}


def test_messages_name_the_callers_position() -> None:
    _, second = chunks(["a", "b", "c"], Limits(max_items_per_request=2))
    reply = answer(encode_pb2.EncodeRequest(items=second.items))
    reply.errors.add(index=0, code=3, reason="BAD", message="items[0].text: odd, not items[0]")
    [error] = second.rows(reply)[1]
    assert (error.index, error.message) == (2, "items[2].text: odd, not items[0]")


def test_what_is_too_large_fails_alone() -> None:
    limits = Limits(max_message_bytes=1 << 20)
    large = [b"x" * (1 << 20), "x" * (9 << 10)]
    cut = list(chunks(["a", *large, "b"], limits))
    assert [item.text for chunk in cut for item in chunk.items] == ["a", "b"]
    failed = [(e.index, e.reason) for chunk in cut for e in chunk.failed]
    assert failed == [(1, "IMAGE_TOO_LARGE"), (2, "TEXT_TOO_LONG")]
    blocks = list(point_blocks([("1", large[0]), ("2", "b"), ("3", large[1])], limits))
    assert [point.id for block in blocks for point in block.points] == ["2"]
    assert [e.reason for block in blocks for e in block.failed] == [r for _, r in failed]


def test_point_and_query_mistakes_are_named() -> None:
    for bad in [("", "text"), ("a", 3), "a", ("a", "b", {"x": object()})]:
        with pytest.raises(InvalidArgument, match=r"points\[0\]"):
            list(point_blocks([bad], Limits()))  # type: ignore[list-item]  # what is tested
    with pytest.raises(InvalidArgument, match="empty list"):
        plan_of([])


def plan_of(query: object) -> SearchPlan:
    return SearchPlan(
        "c",
        query,
        limit=3,
        conditions=None,
        score_threshold=None,
        exact=False,
        expected_space_id="",
    )


def test_search_lists_are_cut_and_must_be_of_one_version() -> None:
    plan = plan_of([f"q{i}" for i in range(600)])
    sizes = [len(r.queries) for r in plan.requests(Limits())]
    assert sizes == [256, 256, 88]
    result = search_pb2.QueryResult(hits=[search_pb2.Hit(id="a", score=0.5)])
    plan.add(search_pb2.SearchResponse(results=[result], version="v1"))
    with pytest.raises(Aborted):
        plan.add(search_pb2.SearchResponse(results=[result], version="v2"))
    for _ in range(5):
        plan.restart(Aborted("moved", reason="VERSION_CHANGED"))
    with pytest.raises(Aborted):
        plan.restart(Aborted("moved", reason="VERSION_CHANGED"))
    plan.add(search_pb2.SearchResponse(results=[result], version="v2"))
    assert [hits.version for hits in plan.result()] == ["v2"]
    with pytest.raises(Aborted):
        plan_of("one").restart(Aborted("somebody else"))
    assert plan_of("one").requests(Limits())


def test_errors_read_well() -> None:
    error = InvalidArgument.field("items[3]", "empty text", reason="TEXT_EMPTY")
    assert str(error) == "TEXT_EMPTY: items[3]: empty text"
    assert isinstance(error, ValueError)
    assert str(HotclipError("x", reason="Y", request_id="r")) == "Y: x [request r]"


@pytest.mark.parametrize("dimensions", [0, -1, 2**32, 2**40, 3.5, 3.0, True, "3"])
def test_dimensions_are_a_number_that_a_request_can_say(dimensions: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        options(model="", version="", expected_space_id="", **(GOOD | {"dimensions": dimensions}))  # type: ignore[arg-type]  # what is tested
    assert caught.value.fields[0].field == "dimensions"


def test_dimensions_may_be_numpys_and_large() -> None:
    for good in (2**32 - 1, np.int64(7)):
        told = options(model="", version="", expected_space_id="", **(GOOD | {"dimensions": good}))  # type: ignore[arg-type]  # of mixed values
        assert EncodePlan(["a"], told, Limits()).request(Chunk(0)).dimensions == good


RESIZED = replace(told(), resize=True)


def info_of(*versions: tuple[str, str, str]) -> ServerInfo:
    """Of a server with these models, versions and ids of preprocessing.

    The first version of each model is live; the space of v1 is s1, and so on.
    """
    told = server_pb2.GetServerInfoResponse()
    for model, version, name in versions:
        live = model not in {known.model for known in told.versions}
        entry = told.versions.add(
            model=model, version=version, live=live, space_id=version.replace("v", "s")
        )
        entry.image_preprocessing.id = name
    return server_info(told)


def test_images_are_resized_as_the_version_that_answers_wants_it() -> None:
    info = info_of(
        ("other", "v0", "o"),
        ("default", "v1", "a"),
        ("default", "v2", "b"),
        ("same", "v3", "c"),
        ("same", "v4", "c"),
        ("silent", "v5", ""),
    )

    def chosen(told: Options, version: str = "") -> str:
        found = preprocessing_of(told, info, version)
        return found.id if found else ""

    assert chosen(RESIZED) == "a"
    assert chosen(RESIZED, "v2") == "b"
    assert chosen(RESIZED, "v0") == "o"
    assert chosen(replace(RESIZED, version="v2")) == "b"
    assert chosen(replace(RESIZED, version="v9")) == ""
    assert chosen(replace(RESIZED, model="other")) == "o"
    assert chosen(replace(RESIZED, model="nobody")) == ""
    assert chosen(replace(RESIZED, model="silent")) == ""
    assert chosen(told()) == ""
    assert chosen(replace(RESIZED, expected_space_id="s1")) == "a"
    assert chosen(replace(RESIZED, expected_space_id="s2")) == "b"
    # Spaces of fewer dimensions have ids of their own, of any resident version.
    assert chosen(replace(RESIZED, expected_space_id="s2-cut")) == ""
    assert chosen(replace(RESIZED, model="same", expected_space_id="s3-cut")) == "c"


A, B = (
    ImagePreprocessing(
        id=name, height=8, width=8, resize_mode="squash", interpolation="bicubic", fill_color=0
    )
    for name in "ab"
)
PIXELS = np.zeros((20, 20, 3), np.uint8)


def refused(request: encode_pb2.EncodeRequest, wanted: str) -> encode_pb2.EncodeResponse:
    """The answer of a version that wants this preprocessing."""
    reply = answer(request, "v2")
    for index, item in enumerate(request.items):
        if item.tensor.preprocessing_id not in ("", wanted):
            reply.errors.add(index=index, code=9, reason="PREPROCESSING_CHANGED")
    return reply


def test_images_resized_for_another_version_are_resized_anew() -> None:
    plan = EncodePlan([PIXELS], RESIZED, Limits(), A)
    [chunk] = plan.chunks()
    changed = refused(plan.request(chunk), "b")
    for _ in range(5):
        with pytest.raises(FailedPrecondition) as caught:
            plan.add(chunk, changed)
        plan.restart(caught.value)
    assert plan.answered_by == "v2"
    with pytest.raises(FailedPrecondition):
        plan.restart(caught.value)
    plan.resize = B
    [chunk] = plan.chunks()
    plan.add(chunk, refused(plan.request(chunk), "b"))
    assert plan.result().version == "v2"


@pytest.mark.parametrize("resize", [None, B])
@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_an_image_that_the_caller_resized_for_another_version_fails_alone(
    resize: ImagePreprocessing | None, on_error: str
) -> None:
    told_here = replace(told(on_error), resize=resize is not None)
    plan = EncodePlan(["a", Image.resized(PIXELS, A), PIXELS], told_here, Limits(), resize)
    [chunk] = plan.chunks()
    plan.add(chunk, refused(plan.request(chunk), "b"))  # nothing to start again for
    if on_error == "raise":
        with pytest.raises(ItemsFailed) as caught:
            plan.result()
        errors = caught.value.errors
    else:
        errors = plan.result().errors
    assert [(e.index, e.reason) for e in errors] == [(1, "PREPROCESSING_CHANGED")]


def test_a_stale_image_does_not_keep_others_from_being_resized_anew() -> None:
    plan = EncodePlan([Image.resized(PIXELS, A), PIXELS], RESIZED, Limits(), A)
    [chunk] = plan.chunks()
    with pytest.raises(FailedPrecondition) as caught:
        plan.add(chunk, refused(plan.request(chunk), "b"))
    plan.restart(caught.value)
    plan.resize = B
    [chunk] = plan.chunks()
    plan.add(chunk, refused(plan.request(chunk), "b"))
    assert [e.index for e in plan.result().errors] == [0]


def cut_short(kind: str) -> Pil.Image:
    """A picture whose file is read, and found to end too early, when it is needed."""
    file = io.BytesIO()
    Pil.effect_noise((200, 200), 90).convert("RGB").save(file, kind)
    return Pil.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))


def test_pictures_that_cannot_be_resized_fail_alone() -> None:
    strange = Pil.new("La", (200, 200))  # premultiplied; nothing converts it
    broken = [strange, cut_short("PNG"), cut_short("JPEG")]
    [chunk] = chunks(["a", *broken, PIXELS], Limits(), resize=A)
    assert [(e.index, e.reason) for e in chunk.failed] == [
        (index, "IMAGE_UNREADABLE") for index in (1, 2, 3)
    ]
    assert [item.WhichOneof("content") for item in chunk.items] == ["text", "tensor"]


def test_resizing_here_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)  # as if it were not installed
    for attempt in (
        lambda: Image.resized(b"image", A),
        lambda: options(
            model="", version="", expected_space_id="", **(GOOD | {"resize": "client"})
        ),
    ):
        with pytest.raises(FailedPrecondition, match=r"hotclip\[image\]") as caught:
            attempt()
        assert caught.value.reason == "PILLOW_MISSING"
