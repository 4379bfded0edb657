"""Hold pairs out for validation so that nothing leaks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from hotclip_server.training.errors import InvalidPairs
from hotclip_server.training.pairs import Pair, PairSet, SomePairs


def split_pairs(data: PairSet, share: float, seed: int) -> tuple[SomePairs, SomePairs]:
    """(training, validation) with about `share` of the families in validation.

    A family is what hangs together by the same image, text or group, directly or through other
    pairs; it goes to one side whole, so no caption and no image is on both. Which side depends on
    the seed and the family's content, not on the order of the pairs. One so large that the share
    would be overshot is trained on, unless all are. What a training pair names as
    wrong is left out where it is held out: negatives join no families, else hard ones would tie
    everything together.

    Raises InvalidPairs if the share is not within 0..1 or one side would be empty.
    """
    if not 0 < share < 1:
        raise InvalidPairs(f"the validation share must be between 0 and 1, got {share}")
    families = _families(data.pairs)
    order = sorted(families, key=lambda members: _rank(data.pairs, members, seed))
    wanted = share * len(data.pairs)
    held: set[int] = set()
    for members in order:
        if len(held) + len(members) / 2 <= wanted:
            held.update(members)
    if order and not held:  # every family is large
        smallest = min(order, key=len)
        held.update(smallest)
    training = [pair for i, pair in enumerate(data.pairs) if i not in held]
    validation = [pair for i, pair in enumerate(data.pairs) if i in held]
    if not training or not validation:
        raise InvalidPairs(
            f"{len(families)} independent groups of pairs can't be split: need at least 2"
        )
    return SomePairs(without_negatives_of(training, validation), data), SomePairs(validation, data)


def without_negatives_of(training: Sequence[Pair], held: Sequence[Pair]) -> list[Pair]:
    """Training pairs without negatives that are held out."""
    images, texts = {pair.image_key for pair in held}, {pair.text for pair in held}
    return [
        replace(
            pair,
            negative_texts=tuple(t for t in pair.negative_texts if t not in texts),
            negative_images=tuple(k for k in pair.negative_images if k not in images),
        )
        if pair.negative_texts or pair.negative_images
        else pair
        for pair in training
    ]


def _families(pairs: Sequence[Pair]) -> list[list[int]]:
    """Connected components of the pairs: union-find over image, text and group."""
    parent = list(range(len(pairs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, pair in enumerate(pairs):
        for key in (("image", pair.image_key), ("text", pair.text), ("group", pair.group)):
            if key[1]:  # a labelled image has no text
                parent[root(i)] = root(first.setdefault((key[0], key[1]), i))
    families: dict[int, list[int]] = {}
    for i in range(len(pairs)):
        families.setdefault(root(i), []).append(i)
    return list(families.values())


def _rank(pairs: Sequence[Pair], members: list[int], seed: int) -> bytes:
    """Pseudo-random place of a family in the order in which validation is filled."""
    name = min(f"{pairs[i].text}\0{pairs[i].image_key}" for i in members)
    return hashlib.blake2b(f"{seed}\0{name}".encode()).digest()
