"""Several sets of pairs as one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

from hotclip_server.training.flat import hashes_of, numbered
from hotclip_server.training.lazy_pairs import Chained, Chosen
from hotclip_server.training.pairs import Pair, PairSet


class JoinedPairs:
    """The pairs of all parts, each pair once, in order. Keys name the same image everywhere."""

    def __init__(self, *parts: PairSet) -> None:
        self._parts = parts

    @cached_property
    def pairs(self) -> Sequence[Pair]:
        """Of all parts."""
        chained = Chained(*(part.pairs for part in self._parts))
        return Chosen(chained, numbered(hashes_of(chained))[1])

    def image_bytes(self, image_key: str) -> bytes:
        """Of a part that has it."""
        for part in self._parts[1:]:
            with suppress(KeyError):
                return part.image_bytes(image_key)
        return self._parts[0].image_bytes(image_key)
