"""Which choices are left out because their point holds something else since."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.feedback.datasets import POINT_CHANGED, _reason
from hotclip_server.feedback.records import Choice, content_of
from hotclip_server.search.records import SourceRow
from hotclip_server.storage.database import now


def row(item: EncodeItem, revision: int) -> SourceRow:
    kind = item.WhichOneof("content") or ""
    return SourceRow(
        point_id="p",
        revision=revision,
        kind=kind,
        item=item.SerializeToString(),
        blob=None,
        payload={},
    )


TAKEN = row(EncodeItem(image=b"an image"), 1)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (TAKEN, ""),
        (replace(TAKEN, revision=2), ""),
        (replace(TAKEN, revision=2, item=None, blob=content_of(TAKEN)), ""),
        (row(EncodeItem(image=b"another"), 2), POINT_CHANGED),
        (replace(TAKEN, revision=2, item=None, blob="another"), POINT_CHANGED),
        (row(EncodeItem(text="an image"), 2), POINT_CHANGED),
    ],
)
def test_what_a_point_holds_decides(found: SourceRow, reason: str) -> None:
    choice = Choice(query="q", point_id="p", time=now(), revision=1, content=content_of(TAKEN))
    assert _reason(choice, found, kept=True) == reason


def test_where_nobody_knows_what_it_held_its_revision_does() -> None:
    old = Choice(query="q", point_id="p", time=now(), revision=1)
    assert _reason(old, TAKEN, kept=True) == ""
    assert _reason(old, replace(TAKEN, revision=2), kept=True) == POINT_CHANGED
