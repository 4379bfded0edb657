"""Pairs of text and image to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Pair:
    """A text that belongs to an image, or a labelled image, whose text is then empty.

    `image_key` names the image within its set. Items of one `group` (a product, a concept)
    belong together even where text and image differ; so do items of one `label`, which is the
    name of a class. `score` in 0..1 says how well text and image fit, 1 where nobody said.
    Negatives look right and are wrong for this row: texts, and keys of images of the same set.
    """

    image_key: str
    text: str
    group: str | None = None
    label: str | None = None
    score: float = 1.0
    negative_texts: tuple[str, ...] = ()
    negative_images: tuple[str, ...] = ()


class PairSet(Protocol):
    """Pairs and the encoded bytes of their images."""

    @property
    def pairs(self) -> Sequence[Pair]: ...

    def image_bytes(self, image_key: str) -> bytes: ...


class ImageSet(Protocol):
    """Images by key, encoded."""

    @property
    def keys(self) -> Sequence[str]: ...

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
