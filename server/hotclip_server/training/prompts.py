"""Texts for labelled images: a label in a sentence.

Training on these with the contrastive loss beats a classification head (FLYP, Goyal et al. 2023,
"Finetune like you pretrain"). No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

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
    return len({(pair.image_key, pair.label or pair.text) for pair in pairs})


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
        return [made for pair in self.source.pairs for made in self._texts(pair)]

    def image_bytes(self, image_key: str) -> bytes:
        """As the source has it."""
        return self.source.image_bytes(image_key)

    def _texts(self, pair: Pair) -> Iterator[Pair]:
        if pair.text or pair.label is None:
            yield pair
            return
        for prompt in self.prompts:
            yield replace(pair, text=prompt.replace(PLACE, pair.label))
