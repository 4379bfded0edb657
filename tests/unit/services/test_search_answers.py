"""Which answers of Search the event loop builds itself."""

from __future__ import annotations

from typing import Any

import pytest

from hotclip_server.search.protocol import Match
from hotclip_server.search.searcher import Found
from hotclip_server.services.search import is_small


@pytest.mark.parametrize(
    ("hits", "payload", "small"),
    [
        (10, {"name": "fox", "n": 3, "tags": ["a", "b"]}, True),
        (128, {}, True),
        (129, {}, False),
        (10, {"text": "x" * 60_000}, True),
        (1, {"n": list(range(3000))}, False),
        (10, {"o": [{"a": {"b": [1, 2, 3, 4]}}] * 40}, False),
    ],
)
def test_few_hits_of_few_values_are_small(hits: int, payload: dict[str, Any], small: bool) -> None:
    found = Found(
        matches=[[Match("id", 0.5, payload)] * hits],
        version="v",
        space_id="s",
        text_encoder_id="t",
        vision_encoder_id="i",
    )
    assert is_small(found) is small
