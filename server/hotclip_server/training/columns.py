"""What a training set knows of its pairs, read in one pass, and how it reads their strings again.
No torch here."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import numpy as np

from hotclip_server.training.flat import Lists, Numbers, hash_of
from hotclip_server.training.pairs import Pair


class Columns:
    """[pairs] hashes of `images`, `texts`, `groups` and `labels`, and `scores`.

    `wrong_texts` and `wrong_images` are hashes of the negatives, pair by pair, of which there are
    so many as the counts say.

    Args:
        negatives: Whether they are read.
    """

    def __init__(self, pairs: Sequence[Pair], *, negatives: bool) -> None:
        count = len(pairs)
        self.images, self.texts, self.groups, self.labels = np.empty((4, count), dtype=np.int64)
        self.scores = np.empty(count, dtype=np.float32)
        self.wrong_text_counts, self.wrong_image_counts = np.zeros((2, count), dtype=np.int32)
        self.without_text = 0
        wrong_texts, wrong_images = array("q"), array("q")
        for at, pair in enumerate(pairs):
            self.images[at] = hash_of(pair.image_key)
            self.texts[at] = hash_of(pair.text)
            self.groups[at] = hash_of(pair.group)
            self.labels[at] = hash_of(pair.label)
            self.scores[at] = pair.score
            self.without_text += not pair.text
            if negatives:
                wrong_texts.extend(map(hash_of, pair.negative_texts))
                wrong_images.extend(map(hash_of, pair.negative_images))
                self.wrong_text_counts[at] = len(pair.negative_texts)
                self.wrong_image_counts[at] = len(pair.negative_images)
        self.wrong_texts = np.array(wrong_texts, dtype=np.int64)
        self.wrong_images = np.array(wrong_images, dtype=np.int64)


class Names(Sequence[str]):
    """Strings by number, read again from where each appeared first.

    Args:
        firsts: [strings]: a place among the pairs, then their negatives, then `others`.
        own: The string of a pair.
        wrong_of: The strings that its negatives are.
        others: Strings of no pair.
    """

    def __init__(
        self,
        firsts: Numbers,
        pairs: Sequence[Pair],
        own: Callable[[Pair], str],
        wrong: Lists,
        wrong_of: Callable[[Pair], Sequence[str]],
        others: Sequence[str] = (),
    ) -> None:
        self._firsts = firsts
        self._pairs, self._own = pairs, own
        self._wrong, self._wrong_of = wrong, wrong_of
        self._others = others

    def __len__(self) -> int:
        return len(self._firsts)

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # no slices
        at = int(self._firsts[number])
        if at < len(self._pairs):
            return self._own(self._pairs[at])
        at -= len(self._pairs)
        if at < len(self._wrong):
            row, place = self._wrong.where(at)
            return self._wrong_of(self._pairs[row])[place]
        return self._others[at - len(self._wrong)]
