"""Pairs made ready for a model: distinct images and texts, numbered; captions of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotclip_server.training.clip import Clip
from hotclip_server.training.errors import InvalidPairs
from hotclip_server.training.images import ImageStore
from hotclip_server.training.pairs import Pair, PairSet
from hotclip_server.training.sampler import epoch_captions

KEYS = 4
"""What items can have in common: image, text, group, label."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and texts of one step.

    The first `pairs` of both belong together, row by row: an image and the caption drawn for it.
    What follows them are images and texts that are wrong for some of these rows. Counts of images
    and texts may so differ.
    """

    pairs: int
    images: Tensor
    """[p, 3, h, w] uint8."""
    tokens: Tensor
    """[q, context] int64."""
    image_keys: Tensor
    """[4, p] int64, numbers of image, text, group and label; -1 is none."""
    text_keys: Tensor
    """[4, q] int64, likewise."""
    scores: Tensor
    """[pairs] float32 in 0..1: how well an image and its caption fit."""


class TrainingSet:
    """Every image once an epoch, with one of its captions; a caption listed twice weighs double."""

    def __init__(self, clip: Clip, data: PairSet, *, budget_bytes: int = 2 << 30) -> None:
        pairs = data.pairs
        require_texts(pairs)
        image_keys = list(dict.fromkeys(pair.image_key for pair in pairs))
        if len(image_keys) < 2:
            raise InvalidPairs(f"need at least 2 different images, got {len(image_keys)}")
        texts = list(dict.fromkeys(pair.text for pair in pairs))
        self.images = len(image_keys)
        self._clip = clip
        self._keys = image_keys
        self.pairs = len(pairs)
        self._store = ImageStore(clip, image_keys, data.image_bytes, budget_bytes)
        self._tokens = tokenize(clip, texts)
        of_image = _numbers(image_keys, [pair.image_key for pair in pairs])
        self._order = np.argsort(of_image, kind="stable")  # pair numbers, image by image
        self._counts = np.bincount(of_image, minlength=self.images).astype(np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        self._text_of_pair = _numbers(texts, [pair.text for pair in pairs])
        self._group_of_pair = _optional([pair.group for pair in pairs])
        self._label_of_pair = _optional([pair.label for pair in pairs])
        self._score_of_pair = np.array([pair.score for pair in pairs], dtype=np.float32)

    def name(self, image: int) -> str:
        """The key of an image by its number."""
        return self._keys[image]

    def captions(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The pair drawn for each image in this epoch."""
        drawn: NDArray[np.int64] = self._order[
            self._starts + epoch_captions(self._counts, seed, epoch)
        ]
        return drawn

    def prefetch(self, images: NDArray[np.int64]) -> None:
        """Begins to decode the images of the next batch, on threads."""
        self._store.prefetch(images.tolist())

    def blank(self, rows: int) -> Batch:
        """As a batch, with black images and the longest texts there may be."""
        size = self._clip.preprocess.size
        height, width = (size, size) if isinstance(size, int) else size
        keys = torch.full((KEYS, rows), -1)
        return Batch(
            pairs=rows,
            images=torch.zeros(rows, 3, height, width, dtype=torch.uint8),
            tokens=self._tokens[:1].repeat(rows, 1),
            image_keys=keys,
            text_keys=keys,
            scores=torch.ones(rows),
        )

    def batch(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Batch:
        """Images by number, with the captions that `captions` drew."""
        drawn = captions[images]
        texts = self._text_of_pair[drawn]
        keys = (images, texts, self._group_of_pair[drawn], self._label_of_pair[drawn])
        both = torch.from_numpy(np.stack(keys))
        return Batch(
            pairs=len(images),
            images=self._store.batch(images.tolist()),
            tokens=self._tokens[torch.from_numpy(texts)],
            image_keys=both,
            text_keys=both,
            scores=torch.from_numpy(self._score_of_pair[drawn]),
        )


def require_texts(pairs: Sequence[Pair]) -> None:
    """Raises InvalidPairs if there is a labelled image without a text."""
    without = sum(not pair.text for pair in pairs)
    if without:
        raise InvalidPairs(f"{without} of {len(pairs)} pairs have a label and no text")


def tokenize(clip: Clip, texts: Sequence[str], chunk: int = 4096) -> Tensor:
    """[n, context] int64."""
    parts = [clip.tokenizer(list(texts[i : i + chunk])) for i in range(0, len(texts), chunk)]
    return torch.cat(parts)


def _numbers(distinct: Sequence[str], values: Sequence[str]) -> NDArray[np.int64]:
    place = {value: number for number, value in enumerate(distinct)}
    return np.array([place[value] for value in values], dtype=np.int64)


def _optional(values: Sequence[str | None]) -> NDArray[np.int64]:
    """Numbers of the distinct values; -1 for none."""
    place: dict[str, int] = {}
    return np.array(
        [-1 if v is None else place.setdefault(v, len(place)) for v in values], dtype=np.int64
    )
