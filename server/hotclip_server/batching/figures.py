"""What the batcher counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class BatchFigures:
    """Counts since the start."""

    batches: int = 0
    items: int = 0
    """That ran on the device."""
    failed_items: int = 0
    largest_batch: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    """Batches by size, rounded up to a power of two."""
    device_s: float = 0.0
    """Time of all batches."""
    waits: int = 0
    """Requests' items that ran or shared what ran."""
    wait_s: float = 0.0
    """Time that they waited for their batch."""
    longest_wait_s: float = 0.0
    tokens: int = 0
    """Of texts that ran, without padding."""
    padding: int = 0
    """Tokens that ran only because a longer text was in the batch."""
    shared: int = 0
    """Items that were answered by another's computation."""
    refused: int = 0
    """Requests that the queue had no room for, or could not have answered in time."""

    @property
    def padding_share(self) -> float:
        """Share of the tokens that were padding."""
        total = self.tokens + self.padding
        return self.padding / total if total else 0.0

    def count_batch(self, items: int, failed: int, seconds: float) -> None:
        """A batch ended."""
        self.batches += 1
        self.items += items
        self.failed_items += failed
        self.largest_batch = max(self.largest_batch, items)
        self.sizes[1 << (items - 1).bit_length()] += 1
        self.device_s += seconds

    def count_tokens(self, items: int, longest: int, tokens: int, *, padded: bool) -> None:
        """The texts of a batch."""
        self.tokens += tokens
        if padded:
            self.padding += items * longest - tokens

    def count_wait(self, seconds: float) -> None:
        """An item's wait ended."""
        self.waits += 1
        self.wait_s += seconds
        self.longest_wait_s = max(self.longest_wait_s, seconds)
