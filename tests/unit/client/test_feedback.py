"""Choices are packed in requests, each with an id, so that sending may be tried again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from hotclip import Choice
from hotclip._feedback import MAX_CHOICES, RecordTally, choice_blocks, choice_of, window_of
from hotclip.errors import InvalidArgument, ItemsFailed
from hotclip_proto.v1 import feedback_pb2, types_pb2


def test_choices_are_cut_and_errors_are_named_by_the_caller_s_place() -> None:
    blocks = list(choice_blocks([("q", f"p{n}") for n in range(2 * MAX_CHOICES + 1)]))
    assert [(block.start, len(block.choices)) for block in blocks] == [
        (0, MAX_CHOICES),
        (MAX_CHOICES, MAX_CHOICES),
        (2 * MAX_CHOICES, 1),
    ]
    ids = {choice.request_id for block in blocks for choice in block.choices}
    assert len(ids) == 2 * MAX_CHOICES + 1
    tally = RecordTally("return")
    for block in blocks:
        error = types_pb2.ItemError(index=0, code=3, reason="R", message="choices[0].query: bad")
        reply = feedback_pb2.RecordFeedbackResponse(recorded=len(block.choices) - 1, errors=[error])
        tally.add(block, reply)
    done = tally.result()
    assert done.recorded == 2 * MAX_CHOICES - 2
    assert [(e.index, e.message) for e in done.errors] == [
        (at, f"choices[{at}].query: bad") for at in (0, MAX_CHOICES, 2 * MAX_CHOICES)
    ]
    raising = RecordTally("raise")
    raising.add(blocks[0], feedback_pb2.RecordFeedbackResponse(errors=[error]))
    with pytest.raises(ItemsFailed, match="0 were recorded"):
        raising.result()


def test_times_are_moments_wherever_they_were_written() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    there = noon.astimezone(timezone(timedelta(hours=5)))
    for time in (noon, there, noon.astimezone().replace(tzinfo=None)):
        packed = choice_of(Choice("q", "p", time), "choices[0]")
        assert packed.time.ToDatetime(tzinfo=UTC) == noon
    window = window_of(there, None)
    assert window.start_time.ToDatetime(tzinfo=UTC) == noon
    assert not window.HasField("end_time")
    assert choice_of(("q", "p"), "choices[0]").HasField("time") is False
    assert choice_of(Choice("q", "p", request_id="mine"), "x").request_id == "mine"


@pytest.mark.parametrize("bad", ["q", ("q",), ("q", 7), Choice("q", None), 3])  # type: ignore[arg-type]  # on purpose
def test_what_is_no_choice_is_named(bad: object) -> None:
    with pytest.raises(InvalidArgument, match=r"choices\[1\]"):
        list(choice_blocks([("q", "p"), bad]))


def test_nothing_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match="empty list"):
        RecordTally("raise").result()
    with pytest.raises(InvalidArgument, match="on_error"):
        RecordTally("ignore")  # type: ignore[arg-type]  # on purpose
