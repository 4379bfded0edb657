"""Several sets of pairs as one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from hotclip_server.training.pairs import Pair, PairSet


class JoinedPairs:
    """The pairs of all parts, each pair once, in order. Keys name the same image everywhere."""

    def __init__(self, *parts: PairSet) -> None:
        self._parts = parts

    @cached_property
    def pairs(self) -> Sequence[Pair]:
        """Of all parts."""
        return list(dict.fromkeys(pair for part in self._parts for pair in part.pairs))

    @cached_property
    def _owner(self) -> dict[str, PairSet]:
        return {
            key: part
            for part in self._parts
            for pair in part.pairs
            for key in (pair.image_key, *pair.negative_images)
        }

    def image_bytes(self, image_key: str) -> bytes:
        """Of the part that has it."""
        return self._owner[image_key].image_bytes(image_key)
