"""Features of a tower that is not trained: one pass over all items instead of one an epoch.

A locked tower gives an item the same features in every step. They are computed ahead of the first
one, and nothing is decoded or encoded again.
"""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from hotclip_server.training.config import TrainConfig
from hotclip_server.training.every_item import EveryItem
from hotclip_server.training.towers import Towers

BUDGET_BYTES = 1 << 30
"""Of the features of one tower; where they take more, every step computes its own."""


class LockedFeatures:
    """`images` and `texts` are [items, width] by number of the item, on the CPU; None: not known.

    Args:
        config: Without "auto"; see `TrainConfig.resolved`.
    """

    def __init__(self, towers: Towers, config: TrainConfig, items: EveryItem) -> None:
        self._items = items
        self._of_images = not towers.trains_image and not config.augment.changes
        self._of_texts = not towers.trains_text
        self.images: Tensor | None = None
        self.texts: Tensor | None = None

    def encode(self, images: int, texts: int) -> Generator[None, None, None]:
        """Computes what there is to know of so many items, in the modes of training; with a pause
        after each group of them."""
        if self._of_images:
            self.images = yield from _within_budget(self._items.images(), images)
        if self._of_texts:
            self.texts = yield from _within_budget(self._items.texts(), texts)


def _within_budget(
    passes: Generator[Tensor, None, Tensor], items: int
) -> Generator[None, None, Tensor | None]:
    while True:
        try:
            part = next(passes)
        except StopIteration as end:
            features: Tensor = end.value
            return features
        if part[0].nbytes * items > BUDGET_BYTES:
            return None
        yield
