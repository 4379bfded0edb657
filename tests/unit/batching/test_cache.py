"""The cache against a plain model of it."""

from __future__ import annotations

import gc

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from hotclip_server.batching.cache import OVERHEAD, FeatureCache
from hotclip_server.testing import FakeEncoder

DIM = 4
SIZE = 4 * DIM + OVERHEAD


def row(number: int) -> np.ndarray:
    return np.full(DIM, number, np.float32)


@settings(max_examples=200, deadline=None)
@given(
    room=st.integers(1, 5),
    asked=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 7)), max_size=60),
)
def test_keeps_what_was_used_last(room, asked):
    cache = FeatureCache(room * SIZE)
    encoders = [FakeEncoder(str(n)) for n in range(2)]
    model: list[tuple[int, int]] = []  # the least recently used first
    for which, number in asked:
        key = number.to_bytes(16)
        found = cache.peek(encoders[which], key)
        assert (found is not None) == ((which, number) in model)
        if found is not None:
            assert found[0] == 10 * which + number
            cache.used(encoders[which], key)
            model.remove((which, number))
        else:
            cache.put(encoders[which], key, row(10 * which + number))
        model = [*model, (which, number)][-room:]
        assert cache.nbytes == SIZE * len(model)
    assert cache.figures.hits + cache.figures.misses == len(asked)
    assert cache.figures.evicted == cache.figures.misses - len(model)


def test_a_row_larger_than_the_cache_is_not_kept():
    cache = FeatureCache(SIZE - 1)
    encoder = FakeEncoder()
    cache.put(encoder, b"key", row(1))
    assert cache.nbytes == 0


def test_rows_are_copies():
    cache = FeatureCache(10 * SIZE)
    encoder = FakeEncoder()
    batch = np.ones((1000, DIM), np.float32)
    cache.put(encoder, b"key", batch[0])
    batch[0] = 2
    kept = cache.peek(encoder, b"key")
    assert kept is not None
    assert kept.base is None
    assert kept.tolist() == [1] * DIM


def test_rows_go_with_their_encoder():
    cache = FeatureCache(10 * SIZE)
    kept, gone = FakeEncoder("kept"), FakeEncoder("gone")
    for encoder in (kept, gone):
        cache.put(encoder, b"key", row(1))
    assert cache.nbytes == 2 * SIZE
    del gone, encoder
    gc.collect()
    assert cache.nbytes == SIZE
    assert cache.peek(kept, b"key") is not None
