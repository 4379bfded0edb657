"""Which collections a change of version leaves behind, and what that costs."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hotclip_server.drift.collections import Need, costs_of
from hotclip_server.encoding.protocol import Tower
from hotclip_server.search.records import Binding, CollectionRecord

RECORD = CollectionRecord(
    name="c",
    model="default",
    version="old",
    space_id="s-old",
    text_encoder_id="t-old",
    vision_encoder_id="v-old",
    dim=8,
    keep_sources=True,
    shard="shard",
    create_time=datetime(2026, 1, 1, tzinfo=UTC),
)
LIT = Binding(
    version="new", space_id="s-new", text_encoder_id="t-new", vision_encoder_id="v-old", dim=8
)
FULL = replace(LIT, vision_encoder_id="v-new")
IMAGES, TEXTS, VECTORS = "image", "text", "vector"


@pytest.mark.parametrize(
    ("held", "new", "kinds", "points", "need", "encoded"),
    [
        # The image side is unchanged: stored images stay valid.
        ([IMAGES], LIT, {"image": 5, "tensor": 2}, 7, Need.NEED_NONE, 0),
        ([IMAGES, TEXTS], LIT, {"image": 5, "text": 3}, 8, Need.NEED_REINDEX, 3),
        ([IMAGES, TEXTS], FULL, {"image": 5, "tensor": 2, "text": 3}, 10, Need.NEED_REINDEX, 10),
        ([IMAGES, VECTORS], FULL, {"image": 5, "vector": 1}, 6, Need.NEED_SOURCES, 5),
        # Nobody knows which side a given vector is of.
        ([IMAGES, VECTORS], LIT, {"image": 5, "vector": 1}, 6, Need.NEED_SOURCES, 0),
        # No sources are kept: what it ever held decides whether it follows.
        ([IMAGES], LIT, {}, 4, Need.NEED_NONE, 0),
        ([IMAGES], FULL, {}, 4, Need.NEED_SOURCES, 0),
        ([TEXTS], LIT, {}, 4, Need.NEED_SOURCES, 0),
        ([IMAGES, TEXTS], LIT, {}, 4, Need.NEED_SOURCES, 0),
        ([VECTORS], LIT, {}, 4, Need.NEED_SOURCES, 0),
        ([], FULL, {}, 0, Need.NEED_NONE, 0),
        # It held a text once: it does not follow by itself, though nothing is encoded.
        ([IMAGES, TEXTS], LIT, {"image": 5}, 5, Need.NEED_REINDEX, 0),
    ],
)
def test_what_a_collection_needs(
    held: list[str],
    new: Binding,
    kinds: dict[str, int],
    points: int,
    need: int,
    encoded: int,
) -> None:
    costs = costs_of(RECORD.holding(held), new, kinds, points)
    assert (costs.need, costs.encoded) == (need, encoded)


def test_one_that_is_ready_needs_nothing() -> None:
    texts = RECORD.holding([TEXTS])
    for ready in (
        replace(texts, version="new"),
        replace(texts, shadow_version="new", shadow_shard="x", shadow_complete=True),
        replace(texts, previous_version="new", previous_shard="x"),
    ):
        assert costs_of(ready, FULL, {"text": 3}, 3).need == Need.NEED_DONE
    growing = replace(texts, shadow_version="new", shadow_shard="x")
    assert costs_of(growing, FULL, {"text": 3}, 3).need == Need.NEED_REINDEX


def test_time_is_encoding_and_storing() -> None:
    costs = costs_of(RECORD.holding([IMAGES, TEXTS]), LIT, {"image": 90, "text": 30}, 120)
    rates = {Tower.TEXT: 10.0, Tower.VISION: None}
    # 30 texts are encoded, 120 points stored; images are copied, so their rate does not matter.
    assert costs.seconds(rates, 60.0) == pytest.approx(30 / 10 + 120 / 60)
    assert math.isnan(costs.seconds({}, 60.0))
    assert math.isnan(costs.seconds(rates, None))
    assert costs_of(RECORD.holding([IMAGES]), LIT, {"image": 9}, 9).seconds({}, None) == 0.0
