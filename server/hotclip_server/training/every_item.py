"""Features of all images, or all texts, of a training set in one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
import torch
from torch import Tensor

from hotclip_server.training.dataset import TrainingSet
from hotclip_server.training.gradients import Drawing
from hotclip_server.training.towers import Towers

CPU_ROWS, CUDA_ROWS = 32, 256
"""Items that run together. On a CPU few, so that others wait for no more than those."""


class EveryItem:
    """By weights and modes as they are. Items run in the same groups every time, so the same
    weights give the same bits.

    Args:
        drawing: See `Trainer`.
    """

    def __init__(self, towers: Towers, data: TrainingSet, drawing: Drawing) -> None:
        self._towers = towers
        self._data = data
        self._drawing = drawing

    def images(self) -> Generator[Tensor, None, Tensor]:
        """[images, width] by number, as `Towers` gives them, on the CPU; yields each group."""
        return (yield from self._all(self._data.distinct_images, self._image))

    def texts(self) -> Generator[Tensor, None, Tensor]:
        """[texts, width], likewise."""
        return (yield from self._all(self._data.distinct_texts, self._text))

    def _all(
        self, items: int, features: Callable[[slice], Tensor]
    ) -> Generator[Tensor, None, Tensor]:
        rows = CPU_ROWS if self._towers.device.type == "cpu" else CUDA_ROWS
        parts = []
        for start in range(0, items, rows):
            with self._drawing(), torch.no_grad():
                parts.append(features(slice(start, min(start + rows, items))).cpu())
            yield parts[-1]
        return torch.cat(parts)

    def _image(self, part: slice) -> Tensor:
        pixels = self._data.pixels(range(part.start, part.stop))
        following = range(part.stop, min(2 * part.stop - part.start, self._data.distinct_images))
        self._data.prefetch(following)
        return self._towers.image(pixels.to(self._towers.device).float().div_(255))

    def _text(self, part: slice) -> Tensor:
        return self._towers.text(
            self._towers.shorten(self._data.tokens(np.arange(part.start, part.stop)))
        )
