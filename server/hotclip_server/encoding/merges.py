"""Byte-pair merging in n log n steps: open_clip's own takes n² and seconds for a long word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush


def merged(symbols: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Joins neighbours until no pair has a rank.

    Each round takes the pair of the lowest rank and joins it wherever it stands, from left to
    right (Sennrich et al., arXiv 1508.07909), as `SimpleTokenizer.bpe` does.
    """
    words: list[str] = list(symbols)
    end = len(words)
    after = list(range(1, end + 1))
    before = list(range(-1, end - 1))
    places: dict[int, list[int]] = {}
    """Where a pair of this rank began when it was seen; it may be gone since."""
    heap: list[int] = []

    def see(left: int) -> None:
        right = after[left]
        rank = ranks.get((words[left], words[right])) if right < end else None
        if rank is None:
            return
        if rank in places:
            places[rank].append(left)
        else:
            places[rank] = [left]
            heappush(heap, rank)

    for left in range(end):
        see(left)
    while heap:
        rank = heappop(heap)
        for left in sorted(places.pop(rank)):
            right = after[left]
            if right == end or ranks.get((words[left], words[right])) != rank:
                continue
            words[left] += words[right]
            words[right] = ""  # no pair has a rank with it
            after[left] = after[right]
            if after[right] < end:
                before[after[right]] = left
            see(left)
            if before[left] >= 0:
                see(before[left])
    return [word for word in words if word]
