"""Streams through real gRPC against the small server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hotclip import Client
from hotclip.errors import ItemsFailed

from .conftest import FakeEncode, vector


def test_order_and_bounded_memory(fake: FakeEncode) -> None:
    taken = 0

    def items() -> Iterator[str]:
        nonlocal taken
        for i in range(1000):
            taken = i + 1
            yield f"{i}"

    furthest = 0
    with Client(fake.address) as client:
        for position, encoded in enumerate(client.encode_stream(items(), batch_size=4)):
            assert encoded.index == position
            np.testing.assert_array_equal(encoded.vector, vector(b"%d" % position, "v1"))
            assert encoded.version == "v1"
            furthest = max(furthest, taken - position)
    assert position == 999
    assert furthest <= 4 * (fake.max_in_flight + 3)


def test_survives_a_broken_stream(fake: FakeEncode) -> None:
    fake.break_stream_after = 3
    texts = [f"{i}" for i in range(100)]
    with Client(fake.address) as client:
        got = list(client.encode_stream(texts, batch_size=4))
    assert [e.index for e in got] == list(range(100))
    assert fake.streams == 2


def test_bad_items(fake: FakeEncode, tmp_path: Path) -> None:
    items = ["a", "bad", "b", *[tmp_path / "none.png"] * 9, "c"]
    with Client(fake.address) as client:
        got = list(client.encode_stream(items, batch_size=3, on_error="return"))
        with pytest.raises(ItemsFailed):
            list(client.encode_stream(items, batch_size=3))
    assert [e.index for e in got] == list(range(13))
    assert [e.index for e in got if e.error is None] == [0, 2, 12]
    assert got[1].error is not None
    assert got[1].error.reason == "TEXT_BAD"
    assert got[5].error is not None
    assert got[5].error.index == 5


def test_abandoned_stream_is_cancelled(fake: FakeEncode) -> None:
    with Client(fake.address) as client:
        stream = client.encode_stream((f"{i}" for i in range(10_000)), batch_size=1)
        next(stream)
        stream.close()
        assert fake.cancelled.wait(10)


def test_empty_stream(fake: FakeEncode) -> None:
    with Client(fake.address) as client:
        assert list(client.encode_stream([])) == []


def test_an_error_of_the_callers_items_is_the_callers(fake: FakeEncode) -> None:
    def items() -> Iterator[str]:
        yield from ("a", "b", "c")
        raise LookupError("mine")

    with Client(fake.address) as client:
        with pytest.raises(LookupError, match="mine"):
            list(client.encode_stream(items(), batch_size=1))
        assert fake.cancelled.wait(10)
