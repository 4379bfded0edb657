"""Pairs made ready for a model: distinct images and texts, numbered; captions of each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotclip_server.training.clip import Clip
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.errors import InvalidPairs
from hotclip_server.training.images import ImageStore
from hotclip_server.training.pairs import Pair, PairSet
from hotclip_server.training.sampler import (
    class_batches,
    epoch_batches,
    epoch_captions,
    epoch_negatives,
)

IMAGE, TEXT, GROUP, LABEL = range(4)
KEYS = 4
"""What items can have in common, as rows of a batch's keys."""


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


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was drawn for an epoch, by number of the image."""

    pairs: NDArray[np.int64]
    """[images]: the pair whose caption it has."""
    places: NDArray[np.float64]
    """[images] in [0, 1): where in the lists of that pair's negatives to begin."""


class TrainingSet:
    """Every image once an epoch, with one of its captions; a caption listed twice weighs double.

    Args:
        negatives: How many of a pair's own negative texts, and of its negative images, come into
            the batch with it.
        budget_bytes: Of decoded images that are kept.
    """

    def __init__(
        self, clip: Clip, data: PairSet, *, negatives: int = 0, budget_bytes: int = 2 << 30
    ) -> None:
        pairs = data.pairs
        require_texts(pairs)
        image_keys = list(dict.fromkeys(pair.image_key for pair in pairs))
        if len(image_keys) < 2:
            raise InvalidPairs(f"need at least 2 different images, got {len(image_keys)}")
        self.images = len(image_keys)
        self._clip = clip
        self.pairs = len(pairs)
        images = Numbering(image_keys)
        texts = Numbering(pair.text for pair in pairs)
        of_image = images.of([pair.image_key for pair in pairs])
        self._order = np.argsort(of_image, kind="stable")  # pair numbers, image by image
        self._counts = np.bincount(of_image, minlength=self.images).astype(np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        self._text_of_pair = texts.of([pair.text for pair in pairs])
        self._group_of_pair = _optional([pair.group for pair in pairs])
        self._label_of_pair = _optional([pair.label for pair in pairs])
        self._score_of_pair = np.array([pair.score for pair in pairs], dtype=np.float32)
        self._negatives = negatives
        wrong = pairs if negatives else ()
        self._wrong_texts = [texts.of(pair.negative_texts) for pair in wrong]
        self._wrong_images = [images.of(pair.negative_images) for pair in wrong]
        self._keys = images.values
        self._store = ImageStore(clip, self._keys, data.image_bytes, budget_bytes)
        self._tokens = tokenize(clip, texts.values)

    def name(self, image: int) -> str:
        """The key of an image by its number."""
        return self._keys[image]

    def batches(self, config: TrainConfig, epoch: int) -> list[NDArray[np.int64]]:
        """Numbers of the images of each step of an epoch."""
        size, seed = config.batch_size, config.seed
        together = config.metric_loss.items_per_class if config.metric_loss else 1
        if together == 1:
            return epoch_batches(self.images, size, seed, epoch)
        first = self._order[self._starts]
        keys = (self._text_of_pair[first], self._group_of_pair[first], self._label_of_pair[first])
        classes = classes_of(torch.from_numpy(np.stack([np.arange(self.images), *keys])))
        return class_batches(classes.numpy(), size, together, seed, epoch)

    def captions(self, seed: int, epoch: int) -> Drawn:
        """What is drawn for this epoch."""
        places = self._starts + epoch_captions(self._counts, seed, epoch)
        return Drawn(pairs=self._order[places], places=epoch_negatives(self.images, seed, epoch))

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

    def batch(self, images: NDArray[np.int64], drawn: Drawn) -> Batch:
        """Images by number, with the captions and negatives that were drawn."""
        pairs = drawn.pairs[images]
        texts = self._text_of_pair[pairs]
        keys = np.stack([images, texts, self._group_of_pair[pairs], self._label_of_pair[pairs]])
        places = drawn.places[images]
        more_images = self._wrong(self._wrong_images, pairs, places, images)
        more_texts = self._wrong(self._wrong_texts, pairs, places, texts)
        all_texts = np.concatenate([texts, more_texts])
        return Batch(
            pairs=len(images),
            images=self._store.batch([*images.tolist(), *more_images.tolist()]),
            tokens=self._tokens[torch.from_numpy(all_texts)],
            image_keys=torch.from_numpy(np.hstack([keys, self._image_keys(more_images)])),
            text_keys=torch.from_numpy(np.hstack([keys, _alone(more_texts, TEXT)])),
            scores=torch.from_numpy(self._score_of_pair[pairs]),
        )

    def _wrong(
        self,
        lists: Sequence[NDArray[np.int64]],
        pairs: NDArray[np.int64],
        places: NDArray[np.float64],
        known: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Numbers of the negatives of some pairs, without those that are in the batch anyway."""
        if not lists:
            return np.zeros(0, dtype=np.int64)
        found = [
            np.roll(lists[pair], -int(place * len(lists[pair])))[: self._negatives]
            for pair, place in zip(pairs, places, strict=True)
        ]
        return np.setdiff1d(np.concatenate(found), known)

    def _image_keys(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """[4, n]: of images that are pairs of this set also group and label of the first one."""
        keys = _alone(images, IMAGE)
        paired = images < self.images
        first = self._order[self._starts[images[paired]]]
        keys[GROUP, paired] = self._group_of_pair[first]
        keys[LABEL, paired] = self._label_of_pair[first]
        return keys


class Numbering:
    """Numbers of distinct strings in the order in which they were first asked for."""

    def __init__(self, values: Iterable[str]) -> None:
        self._place = {value: number for number, value in enumerate(dict.fromkeys(values))}

    @property
    def values(self) -> list[str]:
        """The strings by number."""
        return list(self._place)

    def of(self, values: Iterable[str]) -> NDArray[np.int64]:
        """Their numbers."""
        place = self._place
        numbers = [place.setdefault(value, len(place)) for value in values]
        return np.array(numbers, dtype=np.int64)


def classes_of(keys: Tensor) -> Tensor:
    """[n] int64: the number of the class of each row: by label, else by group, else by text."""
    kinds = torch.where(keys[LABEL] >= 0, LABEL, torch.where(keys[GROUP] >= 0, GROUP, TEXT))
    numbers = keys.gather(0, kinds[None]).squeeze(0)
    classes: Tensor
    _, classes = torch.unique(torch.stack([kinds, numbers]), dim=1, return_inverse=True)
    return classes


def require_texts(pairs: Sequence[Pair]) -> None:
    """Raises InvalidPairs if there is a labelled image without a text."""
    without = sum(not pair.text for pair in pairs)
    if without:
        raise InvalidPairs(f"{without} of {len(pairs)} pairs have a label and no text")


def tokenize(clip: Clip, texts: Sequence[str], chunk: int = 4096) -> Tensor:
    """[n, context] int64."""
    parts = [clip.tokenizer(list(texts[i : i + chunk])) for i in range(0, len(texts), chunk)]
    return torch.cat(parts)


def _alone(numbers: NDArray[np.int64], key: int) -> NDArray[np.int64]:
    """[4, n]: keys of items that have one of them alone."""
    keys = np.full((KEYS, len(numbers)), -1, dtype=np.int64)
    keys[key] = numbers
    return keys


def _optional(values: Sequence[str | None]) -> NDArray[np.int64]:
    """Numbers of the distinct values; -1 for none."""
    place: dict[str, int] = {}
    return np.array(
        [-1 if v is None else place.setdefault(v, len(place)) for v in values], dtype=np.int64
    )
