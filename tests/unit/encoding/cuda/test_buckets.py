"""Which shape a batch runs in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotclip_server.encoding.cuda.buckets import BATCHES, Bucket, Buckets


@given(items=st.integers(1, 256), length=st.integers(1, 77))
def test_the_smallest_that_holds_the_batch(items: int, length: int) -> None:
    buckets = Buckets.of_texts(BATCHES, 77, trimmed=True)
    found = buckets.of(items, length)
    holding = [b for b in buckets if b.items >= items and b.length >= length]
    assert found in holding
    assert found.items == min(b.items for b in holding)
    assert found.length == min(b.length for b in holding)


@pytest.mark.parametrize(("items", "length"), [(0, 1), (257, 1), (1, 78)])
def test_what_fits_none_is_refused(items: int, length: int) -> None:
    with pytest.raises(ValueError, match="fit none"):
        Buckets.of_texts(BATCHES, 77, trimmed=True).of(items, length)


def test_the_largest_comes_first() -> None:
    buckets = list(Buckets.of_texts((1, 4), 20, trimmed=True))
    assert buckets[0] == Bucket(4, 20)
    assert buckets[-1] == Bucket(1, 8)
    assert len(buckets) == len(set(buckets)) == 6


def test_padding_that_counts_is_not_cut() -> None:
    assert Buckets.of_texts((1,), 64, trimmed=False).lengths == (64,)
    assert Buckets.of_images((1, 2)).largest == Bucket(2, 1)
