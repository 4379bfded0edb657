"""Old pairs that are trained on beside the new ones, so that what they say is not forgotten.

Rehearsal of old examples: Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal".
"""

from __future__ import annotations

import numpy as np

from hotclip_server.datasets.joined import JoinedPairs
from hotclip_server.training.flat import HashSet
from hotclip_server.training.lazy_pairs import Chained, Chosen
from hotclip_server.training.pairs import PairSet, SomePairs
from hotclip_server.training.split import without_negatives_of

WEIGHT = 2
"""How often an old pair is listed: of an image with an old and a new caption the old one is drawn
in two epochs of three. Measured on German names beside the old English ones: at the same gain
twice forgets less than once, and three times no less than twice."""


def with_replay(new: PairSet, old: PairSet, held_out: PairSet | None) -> tuple[PairSet, int]:
    """Both as one set to train on, and how many old pairs are left out: those that have an image
    or a text in common with what is held out."""
    measured = held_out.pairs if held_out is not None else ()
    images = HashSet(pair.image_key for pair in measured)
    texts = HashSet(pair.text for pair in measured if pair.text)
    kept = [i for i, p in enumerate(old.pairs) if p.image_key not in images and p.text not in texts]
    chosen = Chosen(old.pairs, np.array(kept, dtype=np.int32))
    replayed = without_negatives_of(chosen, measured)
    joined = JoinedPairs(new, SomePairs(replayed, old))
    again = (WEIGHT - 1) * [replayed]
    return SomePairs(Chained(joined.pairs, *again), joined), len(old.pairs) - len(kept)
