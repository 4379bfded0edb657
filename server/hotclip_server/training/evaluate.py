"""How well a model retrieves: texts to images and images to texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hotclip_server.training.clip import Clip
from hotclip_server.training.dataset import require_texts
from hotclip_server.training.errors import InvalidPairs
from hotclip_server.training.held_out_loss import held_out_loss
from hotclip_server.training.images import ImageStore, nobody_waits
from hotclip_server.training.metrics import Compat, retrieval_metrics
from hotclip_server.training.monitors import MONITOR, VALIDATION_LOSS, signed
from hotclip_server.training.pairs import Pair, PairSet
from hotclip_server.training.texts import TextStore

T = TypeVar("T")

TEXT_TO_IMAGE = "clip-text-to-clip-vision"
IMAGE_TO_TEXT = "clip-vision-to-clip-text"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text query: keys of the images found, best first, and of those that are relevant."""

    query: str
    found: tuple[str, ...]
    relevant: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`metrics` are named as "clip-text-to-clip-vision_reciprocal_rank", both directions."""

    metrics: dict[str, float]
    k: int
    loss: float
    """Of the queries' pairs or of others, see `Evaluator`; as `held_out_loss` has it."""
    examples: tuple[Example, ...] = ()
    monitor: str = MONITOR
    """Name of the one of `metrics_of` that says which of two is better."""

    @property
    def mean_reciprocal_rank(self) -> float:
        """The mean of both directions."""
        names = (f"{TEXT_TO_IMAGE}_reciprocal_rank", f"{IMAGE_TO_TEXT}_reciprocal_rank")
        return sum(self.metrics[name] for name in names) / len(names)

    @property
    def score(self) -> float:
        """What `monitor` names, negated where lower is better: a higher score always is."""
        return signed(self.monitor, metrics_of(self)[self.monitor])


def metrics_of(evaluation: Evaluation) -> dict[str, float]:
    """As events and versions carry them. Whatever decided, the one that is called "monitor" is the
    mean reciprocal rank of both directions, so that versions can be compared."""
    return {
        **evaluation.metrics,
        MONITOR: evaluation.mean_reciprocal_rank,
        VALIDATION_LOSS: evaluation.loss,
    }


class Evaluator:
    """Held-out queries and the index they are searched in; decodes and tokenises what fits
    into memory once.

    Texts of `queries` are searched among all images of `index`, images of `queries` among all
    texts of `index`. Relevant is what `Relevance` says of the pairs of both. Without `index`
    the queries are searched among themselves. The loss is that of the pairs of `rated`, or of the
    queries, in batches of `loss_batch`; what is in `rated` alone is not searched. `monitor` goes
    into each `Evaluation`. With `image_locked` every evaluation is of the same vision tower, which
    then sees each image once. While others wait, of which `waits` tells on any thread, no image is
    decoded ahead.
    Raises InvalidPairs if `queries` or `rated` is empty or an image can't be decoded.
    """

    def __init__(
        self,
        clip: Clip,
        queries: PairSet,
        index: PairSet | None = None,
        *,
        rated: PairSet | None = None,
        monitor: str = MONITOR,
        k: int = 20,
        compat: Compat = "standard",
        batch_size: int = 256,
        loss_batch: int = 64,
        image_locked: bool = False,
        waits: Callable[[], bool] | None = None,
    ) -> None:
        if not queries.pairs or (rated is not None and not rated.pairs):
            raise InvalidPairs("no pairs to evaluate")
        index = queries if index is None else index
        rated = queries if rated is None else rated
        self._k, self._compat, self._monitor = k, compat, monitor
        self._batch_size, self._loss_batch = batch_size, loss_batch
        self._image_locked = image_locked
        self._known_images: NDArray[np.float64] | None = None
        # Once: of a stored set each pass reads its file.
        asked = list(queries.pairs)
        found = asked if index is queries else list(index.pairs)
        judged = asked if rated is queries else list(rated.pairs)
        known = [*found, *asked] if judged is asked else [*found, *asked, *judged]
        require_texts(known)
        self._texts = list(dict.fromkeys(pair.text for pair in known))
        self._images = list(dict.fromkeys(pair.image_key for pair in known))
        in_index = {pair.image_key for pair in found}
        in_queries = {pair.image_key for pair in asked}

        def read(key: str) -> bytes:
            source = index if key in in_index else queries if key in in_queries else rated
            return source.image_bytes(key)

        self._tokens = TextStore(clip, self._texts)
        self._store = ImageStore(clip, self._images, read, waits=waits or nobody_waits)
        text_number = {text: number for number, text in enumerate(self._texts)}
        image_number = {key: number for number, key in enumerate(self._images)}
        self._index_texts = _numbers(text_number, [pair.text for pair in found])
        self._index_images = _numbers(image_number, [pair.image_key for pair in found])
        self._query_texts = _numbers(text_number, [pair.text for pair in asked])
        self._query_images = _numbers(image_number, [pair.image_key for pair in asked])
        self._pair_texts = np.array([text_number[pair.text] for pair in judged])
        self._pair_images = np.array([image_number[pair.image_key] for pair in judged])
        self._relevance = Relevance(asked, found, text_number, image_number)
        self._rated_relevance = (
            self._relevance
            if judged is asked
            else Relevance(judged, found, text_number, image_number)
        )

    def evaluate(
        self, clip: Clip, *, examples: int = 0, pause: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Metrics of the model as it is now, and so many example queries.

        `pause` is called between batches and images; it may wait, or raise to end the evaluation.
        Raises ValueError if an embedding is not finite.
        """
        texts = np.concatenate(
            [
                embed_tokens(clip, self._tokens.batch(part), self._batch_size)
                for part in paused(_parts(len(self._texts), self._batch_size), pause)
            ]
        )
        images = self._embed_images(clip, pause)
        metrics: dict[str, float] = {}
        for name, rows in (
            (
                TEXT_TO_IMAGE,
                _rows(
                    texts,
                    paused(self._query_texts, pause),
                    images,
                    self._index_images,
                    self._relevance.images_of,
                ),
            ),
            (
                IMAGE_TO_TEXT,
                _rows(
                    images,
                    paused(self._query_images, pause),
                    texts,
                    self._index_texts,
                    self._relevance.texts_of,
                ),
            ),
        ):
            for metric, value in retrieval_metrics(rows, self._k, self._compat).items():
                metrics[f"{name}_{metric}"] = value
        shown = self._query_texts[np.linspace(0, len(self._query_texts) - 1, examples, dtype=int)]
        return Evaluation(
            metrics=metrics,
            k=self._k,
            monitor=self._monitor,
            loss=held_out_loss(
                images[self._pair_images],
                texts[self._pair_texts],
                clip.model.logit_scale,
                lambda row: self._rated_relevance.images_of(int(self._pair_texts[row]))[
                    self._pair_images
                ],
                batch_size=self._loss_batch,
            ),
            examples=tuple(self._example(int(n), texts, images) for n in dict.fromkeys(shown)),
        )

    def _embed_images(self, clip: Clip, pause: Callable[[], None]) -> NDArray[np.float64]:
        if self._known_images is not None:
            return self._known_images
        count, size = len(self._images), self._batch_size
        parts = []
        for start in paused(range(0, count, size), pause):
            pixels = self._store.batch(range(start, min(start + size, count)), pause)
            # Decoded while this part is encoded.
            self._store.prefetch(range(start + size, min(start + 2 * size, count)))
            parts.append(embed_pixels(clip, pixels))
        images = np.concatenate(parts)
        if self._image_locked:
            self._known_images = images
            self._store.forget()
        return images

    def _example(
        self, text: int, texts: NDArray[np.float64], images: NDArray[np.float64]
    ) -> Example:
        scores = images[self._index_images] @ texts[text]
        best = self._index_images[np.argsort(-scores, kind="stable")[: self._k]]
        right = self._index_images[self._relevance.images_of(text)[self._index_images] > 0]
        return Example(
            query=self._texts[text],
            found=tuple(self._images[n] for n in best),
            relevant=tuple(self._images[n] for n in right),
        )


def _parts(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Numbers below a count, in order."""
    return (np.arange(start, min(start + size, count)) for start in range(0, count, size))


def paused(parts: Iterable[T], pause: Callable[[], None]) -> Iterator[T]:
    """The parts, with a pause before each."""
    for part in parts:
        pause()
        yield part


@torch.inference_mode()
def embed_tokens(clip: Clip, tokens: Tensor, batch_size: int = 256) -> NDArray[np.float64]:
    """[n, dim], unit norm, of [n, context] tokens."""
    clip.model.eval()
    return np.concatenate(
        [
            _unit(clip.model.encode_text(part.to(clip.device)))
            for part in torch.split(tokens, batch_size)
        ]
    )


@torch.inference_mode()
def embed_pixels(clip: Clip, pixels: Tensor) -> NDArray[np.float64]:
    """[n, dim], unit norm, of [n, 3, h, w] uint8 at model resolution."""
    clip.model.eval()
    return _unit(clip.model.encode_image(clip.normalise(pixels.float() / 255)))


def _unit(features: Tensor) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = nn.functional.normalize(features.double(), dim=-1).cpu().numpy()
    return unit


def _numbers(place: dict[str, int], values: Sequence[str]) -> NDArray[np.int64]:
    """Distinct numbers of the values, in the order of their first appearance."""
    return np.array([place[value] for value in dict.fromkeys(values)], dtype=np.int64)


class Relevance:
    """What is relevant to a text or an image, and its gain.

    The gain of what a pair joins is the pair's score, the largest if it is there several times;
    a score of 0 says that it is not relevant. The pairs of the queries have the word before
    those of the index. What is joined by no pair has the gain 1 if it is of the same group or
    has the same label, else 0. Kept as lists, because a matrix would grow with texts times
    images.
    """

    def __init__(
        self,
        queries: Sequence[Pair],
        index: Sequence[Pair],
        text_number: dict[str, int],
        image_number: dict[str, int],
    ) -> None:
        self._kin: dict[tuple[str, str], tuple[set[int], set[int]]] = {}
        self._of_text = [_Known() for _ in text_number]
        self._of_image = [_Known() for _ in image_number]
        judged: list[dict[tuple[int, int], float]] = []
        for pairs in (index, queries):
            scores: dict[tuple[int, int], float] = {}
            for pair in pairs:
                text, image = text_number[pair.text], image_number[pair.image_key]
                scores[text, image] = max(pair.score, scores.get((text, image), 0.0))
                for name, key in (("group", pair.group), ("label", pair.label)):
                    if key is not None:
                        self._add_kin((name, key), text, image)
            judged.append(scores)
        for (text, image), score in {**judged[0], **judged[1]}.items():
            self._of_text[text].joined.append((image, score))
            self._of_image[image].joined.append((text, score))

    def _add_kin(self, key: tuple[str, str], text: int, image: int) -> None:
        texts, images = self._kin.setdefault(key, (set(), set()))
        texts.add(text)
        images.add(image)
        self._of_text[text].kin.add(key)
        self._of_image[image].kin.add(key)

    def images_of(self, text: int) -> NDArray[np.float64]:
        """[images]: their gains for a text."""
        known = self._of_text[text]
        kin = [self._kin[key][1] for key in known.kin]
        return _gains(len(self._of_image), kin, known.joined)

    def texts_of(self, image: int) -> NDArray[np.float64]:
        """[texts]: their gains for an image."""
        known = self._of_image[image]
        kin = [self._kin[key][0] for key in known.kin]
        return _gains(len(self._of_text), kin, known.joined)


@dataclass
class _Known:
    """Of one item: what it is joined with and how well, its groups and labels."""

    joined: list[tuple[int, float]] = field(default_factory=list)
    kin: set[tuple[str, str]] = field(default_factory=set)


def _gains(
    count: int, kin: Iterable[set[int]], joined: Iterable[tuple[int, float]]
) -> NDArray[np.float64]:
    gains = np.zeros(count)
    for members in kin:
        gains[list(members)] = 1
    for place, score in joined:
        gains[place] = score
    return gains


def _rows(
    queries: NDArray[np.float64],
    query_numbers: Iterable[int],
    index: NDArray[np.float64],
    index_numbers: NDArray[np.int64],
    gains_of: Callable[[int], NDArray[np.float64]],
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Scores and gains of one query after the other, never all of them in memory."""
    candidates = index[index_numbers]
    for number in query_numbers:
        # Equal items may differ in the last bits of a product: no difference, but a tie.
        yield np.round(candidates @ queries[number], 12), gains_of(number)[index_numbers]
