from __future__ import annotations

from collections import Counter

import pytest

from hotclip_server.training.pairs import MemoryPairs, Pair, SomePairs
from hotclip_server.training.replay import WEIGHT, with_replay
from hotclip_server.training.split import split_pairs


def test_nothing_that_is_held_out_is_replayed() -> None:
    new = MemoryPairs(
        [Pair(f"image{i}", f"new name {i}", group=str(i)) for i in range(20)],
        {f"image{i}": b"new" for i in range(20)},
    )
    old = MemoryPairs(
        [
            *(Pair(f"image{i}", f"name {i}", group=str(i)) for i in range(20)),
            Pair("old", "a name", negative_texts=("new name 1", "wrong")),
            *(Pair(f"another{i}", f"new name {i}") for i in range(20)),
            Pair("labelled", "", label="cat"),
        ],
        {f"image{i}": b"new" for i in range(20)} | {"old": b"old"},
    )
    training, held_out = split_pairs(new, 0.1, seed=3)
    held = {pair.image_key for pair in held_out.pairs}
    assert len(held) == 2
    joined, left_out = with_replay(training, old, held_out)
    assert left_out == 4
    assert list(joined.pairs[:18]) == list(training.pairs)
    replayed = joined.pairs[18:]
    assert Counter(Counter(replayed).values()) == {WEIGHT: len(old.pairs) - 4}
    assert not held & {pair.image_key for pair in replayed}
    assert not {pair.text for pair in held_out.pairs} & {pair.text for pair in replayed}
    assert (joined.image_bytes("old"), joined.image_bytes(training.pairs[0].image_key)) == (
        b"old",
        b"new",
    )
    with pytest.raises(KeyError):
        joined.image_bytes("nobody's")
    # A text that is held out is no wrong answer either.
    measured = SomePairs([Pair("m", "new name 1")], new)
    joined, left_out = with_replay(new, old, measured)
    assert left_out == 1
    assert Pair("old", "a name", negative_texts=("wrong",)) in joined.pairs


def test_without_held_out_data_all_of_it_is_replayed() -> None:
    new = MemoryPairs([Pair("a", "one"), Pair("b", "two")], {})
    old = MemoryPairs([Pair("a", "one"), Pair("c", "", label="cat")], {})
    joined, left_out = with_replay(new, old, None)
    assert Counter(joined.pairs) == {**Counter(new.pairs), **dict.fromkeys(old.pairs, WEIGHT)}
    assert left_out == 0
