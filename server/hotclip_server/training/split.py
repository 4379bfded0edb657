"""Hold pairs out for validation so that nothing leaks."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hotclip_server.training.errors import InvalidPairs
from hotclip_server.training.flat import HashSet, Members, hash_of, numbered
from hotclip_server.training.lazy_pairs import Changed, Chosen
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
    pairs = data.pairs
    families = _families(pairs)
    sizes = families.sizes
    order = np.argsort(_ranks(pairs, families, seed), kind="stable")
    wanted = share * len(pairs)
    held, count = np.zeros(len(pairs), dtype=np.bool_), 0
    for family in order:
        if count + sizes[family] / 2 <= wanted:
            held[families.of(family)] = True
            count += int(sizes[family])
    if len(order) and not count:  # every family is large
        held[families.of(order[np.argmin(sizes[order])])] = True
    if held.all() or not held.any():
        raise InvalidPairs(
            f"{len(families)} independent groups of pairs can't be split: need at least 2"
        )
    training = Chosen(pairs, np.flatnonzero(~held).astype(np.int32))
    validation = Chosen(pairs, np.flatnonzero(held).astype(np.int32))
    return SomePairs(without_negatives_of(training, validation), data), SomePairs(validation, data)


def without_negatives_of(training: Sequence[Pair], held: Sequence[Pair]) -> Sequence[Pair]:
    """Training pairs without negatives that are held out."""
    images = HashSet(pair.image_key for pair in held)
    texts = HashSet(pair.text for pair in held)

    def change(pair: Pair) -> Pair:
        if not (pair.negative_texts or pair.negative_images):
            return pair
        return replace(
            pair,
            negative_texts=tuple(t for t in pair.negative_texts if t not in texts),
            negative_images=tuple(k for k in pair.negative_images if k not in images),
        )

    return Changed(training, change)


def _families(pairs: Sequence[Pair]) -> Members:
    """Connected components of the pairs: union-find over image, text and group."""
    parent = array("i", range(len(pairs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    hashes = np.empty((3, len(pairs)), dtype=np.int64)
    for i, pair in enumerate(pairs):
        # A labelled image has no text.
        hashes[:, i] = [hash_of(key or None) for key in (pair.image_key, pair.text, pair.group)]
    for kind in hashes:
        numbers, firsts = numbered(kind)
        for i, number in enumerate(numbers):
            if number >= 0:
                parent[root(i)] = root(firsts[number])
    roots = np.array([root(i) for i in range(len(pairs))], dtype=np.int64)
    return Members(numbered(roots)[0])


def _ranks(pairs: Sequence[Pair], families: Members, seed: int) -> NDArray[np.uint64]:
    """Pseudo-random place of each family in the order in which validation is filled."""
    ranks = np.empty(len(families), dtype=np.uint64)
    for family in range(len(families)):
        members = [pairs[i] for i in families.of(family).tolist()]
        name = min(f"{pair.text}\0{pair.image_key}" for pair in members)
        digest = hashlib.blake2b(f"{seed}\0{name}".encode()).digest()
        ranks[family] = int.from_bytes(digest[:8])
    return ranks
