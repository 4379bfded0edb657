"""Pairs of text and image to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Pair:
    """A text that belongs to an image.

    `image_key` names the image within its set. Items of one `group` (a product, a concept) are
    positives of each other even where text and image differ.
    """

    image_key: str
    text: str
    group: str | None = None


class PairSet(Protocol):
    """Pairs and the encoded bytes of their images."""

    @property
    def pairs(self) -> Sequence[Pair]: ...

    def image_bytes(self, image_key: str) -> bytes: ...


@dataclass(frozen=True)
class MemoryPairs:
    """Pairs whose images lie in memory, encoded."""

    pairs: Sequence[Pair]
    images: Mapping[str, bytes]

    def image_bytes(self, image_key: str) -> bytes:
        return self.images[image_key]


@dataclass(frozen=True)
class SomePairs:
    """Some pairs of another set."""

    pairs: Sequence[Pair]
    source: PairSet

    def image_bytes(self, image_key: str) -> bytes:
        return self.source.image_bytes(image_key)
