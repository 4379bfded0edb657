"""What is measured although it is trained on."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hotclip_server.training.flat import HashSet, hash_of
from hotclip_server.training.pairs import Pair


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Of pairs that are trained on with others that are measured."""

    images: int
    """Distinct ones that both have."""
    texts: int
    """Likewise; labelled images have none."""
    negatives: int
    """Texts and images that are measured and that pairs which are trained on name as wrong, counted
    for each pair."""

    def __str__(self) -> str:
        """The images and texts, or none: "3 images and 2 texts"."""
        counts = ((self.images, "images"), (self.texts, "texts"))
        return " and ".join(f"{count} {name}" for count, name in counts if count)


def overlap(training: Sequence[Pair], measured: Sequence[Pair]) -> Overlap:
    """Reads each pair that is trained on once."""
    held_images = HashSet(pair.image_key for pair in measured)
    held_texts = HashSet(pair.text for pair in measured if pair.text)
    images, texts, negatives = array("q"), array("q"), 0
    for pair in training:
        images.append(hash_of(pair.image_key))
        if pair.text:
            texts.append(hash_of(pair.text))
        negatives += sum(text in held_texts for text in pair.negative_texts)
        negatives += sum(key in held_images for key in pair.negative_images)
    return Overlap(
        images=_common(images, held_images), texts=_common(texts, held_texts), negatives=negatives
    )


def _common(hashes: array[int], held: HashSet) -> int:
    return len(np.intersect1d(np.array(hashes, dtype=np.int64), held.hashes))
