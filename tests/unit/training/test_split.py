from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotclip_server.training.errors import InvalidPairs
from hotclip_server.training.pairs import MemoryPairs, Pair
from hotclip_server.training.split import split_pairs

pairs = st.lists(
    st.builds(
        Pair,
        st.integers(0, 30).map(str),
        st.integers(0, 30).map(str),
        st.none() | st.integers(0, 5).map(str),
    ),
    min_size=1,
    max_size=40,
)


@settings(deadline=None)
@given(pairs, st.floats(0.05, 0.95), st.integers(0, 9))
def test_no_image_text_or_group_is_on_both_sides(found: list[Pair], share: float, seed: int):
    try:
        training, validation = split_pairs(MemoryPairs(found, {}), share, seed)
    except InvalidPairs as error:
        assert "can't be split" in str(error)  # noqa: PT017  # one family holds everything
        return
    assert sorted(map(repr, [*training.pairs, *validation.pairs])) == sorted(map(repr, found))
    for attribute in ("image_key", "text", "group"):
        sides = [
            {getattr(pair, attribute) for pair in side.pairs} - {None}
            for side in (training, validation)
        ]
        assert not sides[0] & sides[1]


def test_share_is_kept_and_the_order_of_pairs_does_not_matter():
    found = [Pair(f"image{i // 2}", f"text{i}") for i in range(200)]
    training, validation = split_pairs(MemoryPairs(found, {}), 0.1, seed=1)
    assert len(validation.pairs) == 20
    again = split_pairs(MemoryPairs(found[::-1], {}), 0.1, seed=1)[1]
    assert set(again.pairs) == set(validation.pairs)
    other = split_pairs(MemoryPairs(found, {}), 0.1, seed=2)[1]
    assert set(other.pairs) != set(validation.pairs)
    assert len(training.pairs) == 180


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_share_must_be_inside(share: float):
    with pytest.raises(InvalidPairs, match="between 0 and 1"):
        split_pairs(MemoryPairs([Pair("a", "b"), Pair("c", "d")], {}), share, seed=0)


def test_negatives_that_are_held_out_are_not_trained_on() -> None:
    found = [
        Pair(
            f"image{i}",
            f"text{i}",
            negative_texts=(f"text{(i + 1) % 50}", "of no pair"),
            negative_images=(f"image{(i + 2) % 50}",),
        )
        for i in range(50)
    ]
    training, validation = split_pairs(MemoryPairs(found, {}), 0.2, seed=1)
    assert len(validation.pairs) == 10
    held = {p.text for p in validation.pairs} | {p.image_key for p in validation.pairs}
    left = {n for p in training.pairs for n in (*p.negative_texts, *p.negative_images)}
    assert not held & left
    assert sum("of no pair" in p.negative_texts for p in training.pairs) == 40
    assert validation.pairs[0] in found


@pytest.mark.parametrize("seed", range(12))
def test_a_large_family_is_trained_on(seed: int) -> None:
    found = [
        *(Pair(f"same{i}", "a text that many images have") for i in range(60)),
        *(Pair(f"image{i}", f"text{i}") for i in range(40)),
    ]
    training, validation = split_pairs(MemoryPairs(found, {}), 0.1, seed)
    assert len(validation.pairs) == 10
    assert len(training.pairs) == 90
    # Where every family is large, the smallest is held out.
    halves = [Pair(f"{i}", "x" if i < 7 else "y") for i in range(10)]
    _, validation = split_pairs(MemoryPairs(halves, {}), 0.1, seed)
    assert {pair.text for pair in validation.pairs} == {"y"}
