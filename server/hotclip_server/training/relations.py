"""What belongs together in a set of pairs, by number. No torch here.

An image and a text belong together if a pair joins them, or if a pair of the one and a pair of the
other have the text, the group or the label in common. So several captions of an image, several
images of a product and all of a class are no negatives of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.signedinteger[Any]]


class Relations:
    """Of each pair what it may not be a negative of.

    `images` and `texts` are [pairs]: the number of each pair's image and text.

    Args:
        kin: [pairs] each: groups and labels; -1 is none.
    """

    def __init__(self, images: Numbers, texts: Numbers, kin: Sequence[Numbers]) -> None:
        self.images = images
        self.texts = texts
        self._shared = [_Members(values) for values in (images, texts, *kin)]

    def images_of(self, pairs: Numbers) -> Numbers:
        """Distinct numbers of the images that belong to any of the pairs."""
        return np.unique(self.images[self._relatives(pairs)])

    def texts_of(self, pairs: Numbers) -> Numbers:
        """Likewise of the texts."""
        return np.unique(self.texts[self._relatives(pairs)])

    def _relatives(self, pairs: Numbers) -> Numbers:
        found = [members.of(pairs) for members in self._shared]
        return np.unique(np.concatenate([pairs, *found]))


class _Members:
    """Pairs by a value that they share."""

    def __init__(self, values: Numbers) -> None:
        self._values = values
        self._order = np.argsort(values, kind="stable").astype(np.int32)
        self._sorted = values[self._order]

    def of(self, pairs: Numbers) -> Numbers:
        """Pairs that share the value of any of these, where it is not negative."""
        wanted = np.unique(self._values[pairs])
        wanted = wanted[wanted >= 0]
        begin = np.searchsorted(self._sorted, wanted, "left")
        end = np.searchsorted(self._sorted, wanted, "right")
        parts = [self._order[a:b] for a, b in zip(begin, end, strict=True)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
