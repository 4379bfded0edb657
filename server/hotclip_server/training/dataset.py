"""Pairs made ready for a model: distinct images and texts, numbered; captions of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotclip_server.training.clip import Clip
from hotclip_server.training.columns import Columns, Names
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.errors import InvalidPairs
from hotclip_server.training.flat import Lists, Members, hashes_of, numbered, slim
from hotclip_server.training.images import ImageStore, nobody_waits
from hotclip_server.training.mining import Mined
from hotclip_server.training.pairs import ImageSet, Pair, PairSet
from hotclip_server.training.relations import Numbers, Relations
from hotclip_server.training.sampler import (
    class_batches,
    epoch_batches,
    epoch_captions,
    epoch_negatives,
)
from hotclip_server.training.texts import TextStore

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
    """[p, 3, h, w] uint8; [p, 0] where `image_features` are known."""
    tokens: Tensor
    """[q, context] int64."""
    image_keys: Tensor
    """[4, p] int64, numbers of image, text, group and label; -1 is none."""
    text_keys: Tensor
    """[4, q] int64, likewise."""
    scores: Tensor
    """[pairs] float32 in 0..1: how well an image and its caption fit."""
    image_features: Tensor | None = None
    """[p, width] of a tower that is not trained, as `Towers` gives them, if they are known."""
    text_features: Tensor | None = None
    """[q, width], likewise."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was drawn for an epoch, by number of the image."""

    pairs: NDArray[np.int32]
    """[images]: the pair whose caption it has."""
    seed: int
    epoch: int

    @cached_property
    def places(self) -> NDArray[np.float64]:
        """[images] in [0, 1): where in the lists of that pair's negatives to begin."""
        return epoch_negatives(len(self.pairs), self.seed, self.epoch)


class TrainingSet:
    """Every image once an epoch, with one of its captions; a caption listed twice weighs double.

    Args:
        negatives: How many of a pair's own negative texts, and of its negative images, come into
            the batch with it.
        budget_bytes: See `ImageStore`.
        candidates: Images that may be negatives besides those of the pairs.
        pause: Called after each image that was not decoded ahead; may wait, or raise.
        waits: See `ImageStore`.
    """

    def __init__(
        self,
        clip: Clip,
        data: PairSet,
        *,
        negatives: int = 0,
        budget_bytes: int | None = None,
        candidates: ImageSet | None = None,
        pause: Callable[[], object] | None = None,
        waits: Callable[[], bool] | None = None,
    ) -> None:
        columns = Columns(data.pairs, negatives=negatives > 0)
        _require_texts(columns.without_text, len(data.pairs))
        of_image, _ = numbered(columns.images)
        self.images = int(of_image.max(initial=-1)) + 1
        if self.images < 2:
            raise InvalidPairs(f"need at least 2 different images, got {self.images}")
        self._clip = clip
        self.pairs = len(data.pairs)
        self._pairs_of = Members(of_image)
        texts, first_texts = numbered(np.concatenate([columns.texts, columns.wrong_texts]))
        others = () if candidates is None else candidates.keys
        images, first_images = numbered(
            np.concatenate([columns.images, columns.wrong_images, hashes_of(others)])
        )
        self._text_of_pair = texts[: self.pairs].copy()
        self._group_of_pair = slim(numbered(columns.groups)[0])
        self._label_of_pair = slim(numbered(columns.labels)[0])
        self._score_of_pair = slim(columns.scores)
        self._negatives = negatives
        self._wrong_texts = Lists(columns.wrong_text_counts, texts[self.pairs :].copy())
        wrong_images = images[self.pairs : self.pairs + len(columns.wrong_images)].copy()
        self._wrong_images = Lists(columns.wrong_image_counts, wrong_images)
        self._keys = Names(
            first_images,
            data.pairs,
            attrgetter("image_key"),
            self._wrong_images,
            attrgetter("negative_images"),
            others,
        )

        def read(key: str) -> bytes:
            try:
                return data.image_bytes(key)
            except KeyError:
                if candidates is None:
                    raise
                return candidates.image_bytes(key)

        self._store = ImageStore(clip, self._keys, read, budget_bytes, waits or nobody_waits)
        self._pause = pause or nobody_waits
        names = Names(
            first_texts,
            data.pairs,
            attrgetter("text"),
            self._wrong_texts,
            attrgetter("negative_texts"),
        )
        self._texts = TextStore(clip, names)
        self._mined: Mined | None = None
        self._mined_at_once = 0

    @cached_property
    def relations(self) -> Relations:
        """What may not be a negative of what."""
        of_image = np.empty(self.pairs, dtype=np.int32)
        of_image[self._pairs_of.order] = np.repeat(
            np.arange(self.images, dtype=np.int32), self._pairs_of.sizes
        )
        return Relations(of_image, self._text_of_pair, (self._group_of_pair, self._label_of_pair))

    def name(self, image: int) -> str:
        """The key of an image by its number."""
        return self._keys[image]

    def batches(self, config: TrainConfig, epoch: int) -> list[NDArray[np.int64]]:
        """Numbers of the images of each step of an epoch."""
        size, seed = config.batch_size, config.seed
        together = config.metric_loss.items_per_class if config.metric_loss else 1
        if together == 1:
            return epoch_batches(self.images, size, seed, epoch)
        first = self._pairs_of.firsts
        keys = (self._text_of_pair[first], self._group_of_pair[first], self._label_of_pair[first])
        classes = classes_of(torch.from_numpy(np.stack([np.arange(self.images), *keys])))
        return class_batches(classes.numpy(), size, together, seed, epoch)

    def captions(self, seed: int, epoch: int) -> Drawn:
        """What is drawn for this epoch."""
        members = self._pairs_of
        places = members.starts + epoch_captions(members.sizes, seed, epoch)
        return Drawn(pairs=members.order[places], seed=seed, epoch=epoch)

    @property
    def distinct_images(self) -> int:
        """Of pairs and negatives; their numbers are below it."""
        return len(self._keys)

    @property
    def distinct_texts(self) -> int:
        """Of pairs and negatives; their numbers are below it."""
        return len(self._texts)

    def tokens(self, texts: NDArray[np.integer]) -> Tensor:
        """[n, context] int64 of texts by number."""
        return self._texts.batch(texts)

    def pixels(self, images: Sequence[int]) -> Tensor:
        """[n, 3, h, w] uint8 of images by number. Raises InvalidPairs naming a bad one."""
        return self._store.batch(images, self._pause)

    def rows_with(self, images: int, mined: int) -> int:
        """Most images, and most texts, of a batch with so many images of pairs, if so many mined
        ones come with each."""
        own = max(self._wrong_images.longest, self._wrong_texts.longest)
        return images * (1 + min(own, self._negatives) + mined)

    def prefetch(self, images: Iterable[int]) -> None:
        """Begins to decode the images that come next, on threads."""
        self._store.prefetch(images)

    def forget_pixels(self) -> None:
        """Drops the decoded images that were kept."""
        self._store.forget()

    def use(self, mined: Mined | None, at_once: int) -> None:
        """From now on so many mined images and texts, each, come into the batch with a pair."""
        self._mined, self._mined_at_once = mined, at_once

    def blank(self, rows: int) -> Batch:
        """As a batch, with black images and the longest texts there may be."""
        size = self._clip.preprocess.size
        height, width = (size, size) if isinstance(size, int) else size
        keys = torch.full((KEYS, rows), -1)
        return Batch(
            pairs=rows,
            images=torch.zeros(rows, 3, height, width, dtype=torch.uint8),
            tokens=self.tokens(np.zeros(rows, dtype=np.int64)),
            image_keys=keys,
            text_keys=keys,
            scores=torch.ones(rows),
        )

    def batch(
        self,
        images: NDArray[np.int64],
        drawn: Drawn,
        *,
        image_features: Tensor | None = None,
        text_features: Tensor | None = None,
    ) -> Batch:
        """Images by number, with the captions and negatives that were drawn.

        Features are [items, width] of all images or texts by number, of a tower that is not
        trained; what is known of images is not decoded.
        """
        pairs = drawn.pairs[images]
        texts = self._text_of_pair[pairs].astype(np.int64)
        keys = np.stack([images, texts, self._group_of_pair[pairs], self._label_of_pair[pairs]])
        more_images = self._wrong(self._wrong_images, pairs, images, drawn, images)
        more_texts = self._wrong(self._wrong_texts, pairs, images, drawn, texts)
        if self._mined is not None:
            places = drawn.places[images]
            hard = self._hard(self._mined.images, pairs, places, self.relations.images_of)
            more_images = np.union1d(more_images, hard)
            hard = self._hard(self._mined.texts, pairs, places, self.relations.texts_of)
            more_texts = np.union1d(more_texts, hard)
        every_image = torch.from_numpy(np.concatenate([images, more_images]))
        every_text = torch.from_numpy(np.concatenate([texts, more_texts]))
        pixels = (
            self._store.batch(every_image.tolist(), self._pause)
            if image_features is None
            else torch.empty(len(every_image), 0, dtype=torch.uint8)
        )
        return Batch(
            pairs=len(images),
            images=pixels,
            tokens=self.tokens(every_text.numpy()),
            image_keys=torch.from_numpy(np.hstack([keys, self._image_keys(more_images)])),
            text_keys=torch.from_numpy(np.hstack([keys, _alone(more_texts, TEXT)])),
            scores=torch.from_numpy(self._score_of_pair[pairs]),
            image_features=None if image_features is None else image_features[every_image],
            text_features=None if text_features is None else text_features[every_text],
        )

    def _wrong(
        self,
        lists: Lists,
        pairs: NDArray[np.int32],
        images: NDArray[np.int64],
        drawn: Drawn,
        known: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Numbers of the negatives of some pairs, without those that are in the batch anyway."""
        if not len(lists):
            return np.zeros(0, dtype=np.int64)
        found = []
        for pair, place in zip(pairs, drawn.places[images], strict=True):
            wrong = lists.of(pair)
            found.append(np.roll(wrong, -int(place * len(wrong)))[: self._negatives])
        return np.setdiff1d(np.concatenate(found).astype(np.int64), known)

    def _hard(
        self,
        lists: Tensor,
        pairs: NDArray[np.int32],
        places: NDArray[np.float64],
        related: Callable[[Numbers], Numbers],
    ) -> NDArray[np.int64]:
        """Numbers of mined negatives of some pairs, without what belongs to any of them."""
        found = []
        for row, place in zip(lists.numpy()[pairs], places, strict=True):
            known = row[row >= 0]
            found.append(np.roll(known, -int(place * len(known)))[: self._mined_at_once])
        return np.setdiff1d(np.concatenate(found), related(pairs))

    def _image_keys(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """[4, n]: of images that are pairs of this set also group and label of the first one."""
        keys = _alone(images, IMAGE)
        paired = images < self.images
        first = self._pairs_of.firsts_of(images[paired])
        keys[GROUP, paired] = self._group_of_pair[first]
        keys[LABEL, paired] = self._label_of_pair[first]
        return keys


def classes_of(keys: Tensor) -> Tensor:
    """[n] int64: the number of the class of each row: by label, else by group, else by text."""
    kinds = torch.where(keys[LABEL] >= 0, LABEL, torch.where(keys[GROUP] >= 0, GROUP, TEXT))
    numbers = keys.gather(0, kinds[None]).squeeze(0)
    classes: Tensor
    _, classes = torch.unique(torch.stack([kinds, numbers]), dim=1, return_inverse=True)
    return classes


def require_texts(pairs: Sequence[Pair]) -> None:
    """Raises InvalidPairs if there is a labelled image without a text."""
    _require_texts(sum(not pair.text for pair in pairs), len(pairs))


def _require_texts(without: int, pairs: int) -> None:
    if without:
        raise InvalidPairs(f"{without} of {pairs} pairs have a label and no text")


def _alone(numbers: NDArray[np.int64], key: int) -> NDArray[np.int64]:
    """[4, n]: keys of items that have one of them alone."""
    keys = np.full((KEYS, len(numbers)), -1, dtype=np.int64)
    keys[key] = numbers
    return keys
