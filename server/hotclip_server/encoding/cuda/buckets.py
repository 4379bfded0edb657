"""Which captured shape a batch runs in."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LENGTHS = (8, 16, 24, 32, 48, 64)
"""Tokens of a text; the context is always one more."""


@dataclass(frozen=True)
class Bucket:
    """A shape: `items` rows of `length` tokens, 1 for images."""

    items: int
    length: int = 1


@dataclass(frozen=True)
class Buckets:
    """The shapes of one tower, ascending."""

    batches: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of_images(cls, batches: Sequence[int]) -> Buckets:
        """Images have one length."""
        return cls(tuple(batches), (1,))

    @classmethod
    def of_texts(cls, batches: Sequence[int], context_length: int, *, trimmed: bool) -> Buckets:
        """Texts of a tower whose padding may be cut (`trimmed`) or may not."""
        shorter = tuple(length for length in LENGTHS if length < context_length)
        return cls(tuple(batches), (*(shorter if trimmed else ()), context_length))

    @property
    def largest(self) -> Bucket:
        """Holds any other."""
        return Bucket(self.batches[-1], self.lengths[-1])

    def of(self, items: int, length: int) -> Bucket:
        """The smallest that holds `items` rows of `length`.

        Raises:
            ValueError: none does.
        """
        row, column = bisect_left(self.batches, items), bisect_left(self.lengths, length)
        if items < 1 or row == len(self.batches) or column == len(self.lengths):
            raise ValueError(f"{items} items of length {length} fit none of {self}")
        return Bucket(self.batches[row], self.lengths[column])

    def __iter__(self) -> Iterator[Bucket]:
        """Largest first: the smaller ones then reuse its memory when they are captured."""
        for length in reversed(self.lengths):
            for items in reversed(self.batches):
                yield Bucket(items, length)
