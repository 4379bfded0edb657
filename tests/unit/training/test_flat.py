"""A set of pairs takes few bytes a pair, and what is read again is what it was."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.errors import DataLoss
from hotclip_server.training.clip import Clip
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.dataset import TrainingSet
from hotclip_server.training.flat import HashSet, Lists, Members, hashes_of, numbered
from hotclip_server.training.prompts import with_texts
from hotclip_server.training.split import split_pairs
from hotclip_server.training.texts import KEPT_BYTES, TextStore
from tests.unit.training.tiny import CONTEXT, stored_pairs, tiny_clip

PAIRS = 20_000
BYTES_A_PAIR = 100
"""Rows and places of images, split, training set, order and captions of an epoch: with Python
objects of rows and tokens of all texts they were 1,600."""


def test_a_training_holds_few_bytes_a_pair(tmp_path: Path) -> None:
    clip = tiny_clip()
    small = stored_pairs(tmp_path / "ds-0", 100)
    prepared(small, clip)  # imports modules
    small.close()
    data = stored_pairs(tmp_path / "ds-1", PAIRS)
    gc.collect()
    tracemalloc.start()
    try:
        training, training_set, *epoch = prepared(data, clip)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - 4 * CONTEXT * training_set.distinct_texts
    finally:
        tracemalloc.stop()
    assert len(training.pairs) == sum(map(len, epoch[0])) == 18_000
    assert held / PAIRS < BYTES_A_PAIR
    data.close()


def prepared(data: StoredDataset, clip: Clip) -> tuple[Any, ...]:
    """All that a run holds of its pairs."""
    training, held_out = split_pairs(data, 0.1, 0)
    training, held_out = with_texts(training, ()), with_texts(held_out, ())
    training_set = TrainingSet(clip, training)
    drawn, batches = training_set.captions(0, 0), training_set.batches(TrainConfig(), 0)
    training_set.tokens(np.arange(64))
    with suppress(KeyError):
        data.image_bytes("of nobody")
    return training, training_set, batches, drawn, held_out


def test_a_row_that_changed_after_it_was_checked_is_told(tmp_path: Path) -> None:
    data = stored_pairs(tmp_path / "ds-1", 3)
    before = data.pairs[1]
    assert list(data.pairs)[1] == before == data.pairs[-2] == data.pairs[1:][0]
    file = tmp_path / "ds-1" / "pairs.jsonl"
    file.write_bytes(
        file.read_bytes().replace(before.text.encode(), b"b" + before.text[1:].encode())
    )
    assert data.pairs[0].text
    with pytest.raises(DataLoss, match="row 1"):
        data.pairs[1]
    data.close()


def test_tokens_are_the_same_whether_they_are_kept_or_made_again() -> None:
    clip, made = tiny_clip(), []

    def tokenizer(texts: list[str]) -> torch.Tensor:
        made.extend(texts)
        return clip.tokenizer(texts)

    counting = Clip(model=clip.model, tokenizer=tokenizer, preprocess=clip.preprocess)
    texts = [f"text {number}" for number in range(10)]
    numbers = np.array([7, 2, 7, 0, 9])
    expected = clip.tokenizer([texts[n] for n in numbers])
    for budget, again in ((KEPT_BYTES, 0), (4 * CONTEXT * 3, 2), (0, 4)):
        store = TextStore(counting, texts, budget)
        assert torch.equal(store.batch(numbers), expected)
        made.clear()
        found = store.batch(numbers)
        assert torch.equal(found, expected)
        assert found.dtype == torch.int64
        assert len(made) == again


@given(st.lists(st.none() | st.integers(0, 6).map(str), max_size=20))
def test_numbers_are_by_first_appearance(values: list[str | None]) -> None:
    numbers, firsts = numbered(hashes_of(values))
    known = [value for value in dict.fromkeys(values) if value is not None]
    assert numbers.tolist() == [-1 if v is None else known.index(v) for v in values]
    assert firsts.tolist() == [values.index(value) for value in known]
    assert all(value in HashSet(known) for value in known)
    assert "other" not in HashSet(known)
    present = numbers[numbers >= 0]
    members = Members(present)
    assert [members.of(n).tolist() for n in range(len(members))] == [
        np.flatnonzero(present == n).tolist() for n in range(len(known))
    ]
    assert members.sizes.tolist() == np.bincount(present).tolist()


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=8))
def test_lists_are_what_went_in(rows: list[list[int]]) -> None:
    flat = [(row, place) for row, values in enumerate(rows) for place in range(len(values))]
    lists = Lists(
        np.array(list(map(len, rows)), dtype=np.int32),
        np.array([rows[row][place] for row, place in flat], dtype=np.int32),
    )
    assert [lists.of(row).tolist() for row in range(len(rows))] == rows
    assert [lists.where(at) for at in range(len(lists))] == flat
    assert lists.longest == max(map(len, rows))
