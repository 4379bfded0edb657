"""Texts for labelled images: a label in a sentence.

Training on these with the contrastive loss beats a classification head (FLYP, Goyal et al. 2023,
"Finetune like you pretrain"). No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from hotclip_server.training.flat import hashes_of
from hotclip_server.training.lazy_pairs import LazyPairs
from hotclip_server.training.pairs import Pair, PairSet

PLACE = "{label}"
DEFAULT_PROMPT = "a photo of {label}"

Some = TypeVar("Some", PairSet, PairSet | None)


def with_texts(data: Some, prompts: Sequence[str]) -> Some:
    """A set in which every image has a text; None is no set."""
    if data is None or all(pair.text for pair in data.pairs):
        return data
    return Prompted(data, prompts)


def count_pairs(pairs: Sequence[Pair]) -> int:
    """How many there are, those that differ in the prompt alone counted once."""
    kinds = hashes_of((pair.image_key, pair.label or pair.text) for pair in pairs)
    return len(np.unique(kinds))


@dataclass(frozen=True)
class Prompted:
    """Another set in which a labelled image without a text has one for each template.

    So it is an image with several captions, of which a run draws one each epoch. Split a set
    before: the images of a label then have their texts in common and would stay together.
    """

    source: PairSet
    prompts: Sequence[str]

    @cached_property
    def pairs(self) -> Sequence[Pair]:
        """In the order of the source, a labelled image's texts in that of the templates."""
        return _Spelled(self.source.pairs, self.prompts)

    def image_bytes(self, image_key: str) -> bytes:
        """As the source has it."""
        return self.source.image_bytes(image_key)


class _Spelled(LazyPairs):
    """Of which pair of the source each is, and with which of the templates."""

    def __init__(self, source: Sequence[Pair], prompts: Sequence[str]) -> None:
        self._source, self._prompts = source, prompts
        counts = np.fromiter((_texts(pair, prompts) for pair in source), np.int32, len(source))
        self._ends = np.cumsum(counts).astype(np.int32)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, number: int) -> Pair:
        """See `LazyPairs`."""
        place = int(np.searchsorted(self._ends, number, side="right"))
        pair = self._source[place]
        if pair.text or pair.label is None:
            return pair
        prompt = self._prompts[number - (int(self._ends[place - 1]) if place else 0)]
        return replace(pair, text=prompt.replace(PLACE, pair.label))


def _texts(pair: Pair, prompts: Sequence[str]) -> int:
    return len(prompts) if pair.label is not None and not pair.text else 1
