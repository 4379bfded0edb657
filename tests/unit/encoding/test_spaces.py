"""Spaces of vectors that were cut."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from hotclip_server.encoding.spaces import space_id, truncated
from hotclip_server.errors import InvalidArgument
from hotclip_server.testing import FakeEncoder

SPEC = FakeEncoder("a").spec


def test_all_elements_are_the_space_itself() -> None:
    assert truncated(SPEC, 0) is SPEC
    assert truncated(SPEC, SPEC.dim) is SPEC


def test_every_number_of_elements_is_a_space_of_its_own() -> None:
    cut = [truncated(SPEC, dim) for dim in range(1, SPEC.dim)]
    assert [spec.dim for spec in cut] == list(range(1, SPEC.dim))
    assert len({spec.space_id for spec in [SPEC, *cut]}) == SPEC.dim
    assert truncated(FakeEncoder("b").spec, 8).space_id != truncated(SPEC, 8).space_id


def test_a_tower_that_two_versions_share_is_shared_when_cut() -> None:
    tuned = replace(SPEC, text_encoder_id="another", space_id="another")
    before, after = truncated(SPEC, 8), truncated(tuned, 8)
    assert before.vision_encoder_id == after.vision_encoder_id
    assert before.space_id != after.space_id


def test_ids_are_what_the_proto_says() -> None:
    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    cut = truncated(SPEC, 8)
    assert cut.text_encoder_id == digest(f"{SPEC.text_encoder_id}:8")
    assert cut.space_id == digest(f"{cut.text_encoder_id}:{cut.vision_encoder_id}")
    assert cut.space_id == space_id(cut.text_encoder_id, cut.vision_encoder_id)


@pytest.mark.parametrize("dimensions", [-1, SPEC.dim + 1])
def test_more_than_there_are_is_refused(dimensions: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        truncated(SPEC, dimensions)
    assert [v.field for v in caught.value.violations] == ["dimensions"]
