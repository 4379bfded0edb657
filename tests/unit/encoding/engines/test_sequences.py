"""Packing and padding are each other's inverse, whatever the lengths and the idle rows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hotclip_server.encoding.engines.sequences import Sequences, rounded_rows

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=9)


@given(lengths=LENGTHS, idle=st.integers(0, 12))
def test_padded_rows_are_those_of_their_sequence(lengths: list[int], idle: int) -> None:
    tokens = sum(lengths)
    rows = tokens + idle
    sequences = Sequences(lengths, torch.device("cpu"), rows)
    x = torch.arange(rows)[:, None].float()
    padded = sequences.pad(x)
    assert padded.shape == (len(lengths), max(lengths), 1)
    start = 0
    for number, length in enumerate(lengths):
        own = list(range(start, start + length))
        assert padded[number, :length, 0].tolist() == own
        assert set(padded[number, length:, 0].tolist()) <= set(own)
        assert sequences.first[number] == start
        assert sequences.last[number] == start + length - 1
        assert sequences.owner[start : start + length].tolist() == [number] * length
        start += length
        if sequences.mask is not None and sequences.additive is not None:
            shown = sequences.mask[number, 0, 0].tolist()
            assert shown == [True] * length + [False] * (max(lengths) - length)
            assert (sequences.additive[number, 0] == 0).tolist() == shown
    assert (sequences.mask is None) == (len(set(lengths)) == 1)
    back = sequences.pack(padded)
    assert back.shape == x.shape
    assert torch.equal(back[:tokens], x[:tokens])


@given(tokens=st.integers(1, 5000))
def test_few_numbers_of_rows_and_little_idle(tokens: int) -> None:
    rows = rounded_rows(tokens)
    assert tokens <= rows <= tokens * 9 / 8
    assert rounded_rows(rows) == rows


def test_there_are_few_numbers_of_rows() -> None:
    assert len({rounded_rows(tokens) for tokens in range(1, 5000)}) < 100
