"""Images of a set at model resolution: encoded on disk, decoded on threads ahead of their use."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from hotclip_server.models.memory import host_free_bytes
from hotclip_server.training.ahead import Ahead
from hotclip_server.training.clip import Clip
from hotclip_server.training.errors import InvalidPairs

MOST_KEPT_BYTES = 2 << 30
"""Of decoded images that are kept, where there is memory for them."""
KEPT_SHARE = 0.25
"""Of the free memory that they may take: images of training and of what is measured are kept."""


def budget_bytes_of(free: int | None) -> int:
    """How many bytes of decoded images may be kept where so many are free; None: not known."""
    return MOST_KEPT_BYTES if free is None else min(MOST_KEPT_BYTES, int(KEPT_SHARE * free))


def nobody_waits() -> bool:
    """There is nobody who should go first."""
    return False


class ImageStore:
    """Pixels by number; those that were decoded are kept while a byte budget lasts.

    What is past the budget is decoded again each time, so memory stays bounded: to the budget,
    what is prefetched, and the batch. Neither threads nor the budget change what a batch holds.

    Args:
        keys: Names of the images; numbers are places in this list.
        read: Gives an image's encoded bytes; called on several threads.
        budget_bytes: Of decoded images that are kept; None: by the memory that is free now.
        waits: Whether others should go first: then nothing is decoded ahead; any thread.
    """

    def __init__(
        self,
        clip: Clip,
        keys: Sequence[str],
        read: Callable[[str], bytes],
        budget_bytes: int | None = None,
        waits: Callable[[], bool] = nobody_waits,
    ) -> None:
        # Not a method: whoever works ahead would hold this, and this them, with all that was kept.
        self._decode = partial(_decoded, clip, keys, read)
        if budget_bytes is None:
            budget_bytes = budget_bytes_of(host_free_bytes())
        self._left = budget_bytes
        self._kept: dict[int, Tensor] = {}
        self._ahead = Ahead(self._decode, waits)

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Begins to decode what the next `batch` will ask for; forgets what was prefetched before.

        The threads end with this work: there is nothing to close.
        """
        wanted = dict.fromkeys(int(number) for number in numbers)
        self._ahead.want(number for number in wanted if number not in self._kept)

    def forget(self) -> None:
        """Drops what was kept; it is decoded again when it is asked for."""
        self._left += sum(pixels.nbytes for pixels in self._kept.values())
        self._kept.clear()

    def batch(self, numbers: Sequence[int], pause: Callable[[], object] = nobody_waits) -> Tensor:
        """[n, 3, h, w] uint8 of the images with these numbers in the list of keys.

        `pause` is called after each image that was not decoded ahead; it may wait, or raise.
        Raises InvalidPairs naming the image that can't be read or decoded.
        """
        return torch.stack([self._one(int(number), pause) for number in numbers])

    def _one(self, number: int, pause: Callable[[], object]) -> Tensor:
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        pixels = self._ahead.take(number)
        if pixels is None:
            pixels = self._decode(number)
            pause()
        if pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._kept[number] = pixels
        return pixels


def _decoded(clip: Clip, keys: Sequence[str], read: Callable[[str], bytes], number: int) -> Tensor:
    key = keys[number]
    try:
        with Image.open(io.BytesIO(read(key))) as image:
            return clip.pixels(image)
    except (OSError, KeyError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidPairs(f"image {key!r} can't be decoded: {error}") from error
