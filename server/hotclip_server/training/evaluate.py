"""How well a model retrieves: texts to images and images to texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hotclip_server.training.clip import Clip, ImageStore
from hotclip_server.training.dataset import tokenize
from hotclip_server.training.errors import InvalidPairs
from hotclip_server.training.metrics import retrieval_metrics
from hotclip_server.training.pairs import Pair, PairSet

TEXT_TO_IMAGE = "clip-text-to-clip-vision"
IMAGE_TO_TEXT = "clip-vision-to-clip-text"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`metrics` are named as "clip-text-to-clip-vision_reciprocal_rank", both directions."""

    metrics: dict[str, float]
    k: int

    @property
    def score(self) -> float:
        """Mean reciprocal rank of both directions: what "better" means for a candidate."""
        names = (f"{TEXT_TO_IMAGE}_reciprocal_rank", f"{IMAGE_TO_TEXT}_reciprocal_rank")
        return sum(self.metrics[name] for name in names) / len(names)


class Evaluator:
    """Held-out queries and the index they are searched in; decodes and tokenises once.

    Texts of `queries` are searched among all images of `index`, images of `queries` among all
    texts of `index`. Relevant is what a pair of either joins, and what has the same group.
    Without `index` the queries are searched among themselves. Raises InvalidPairs if `queries`
    is empty or an image can't be decoded.
    """

    def __init__(
        self,
        clip: Clip,
        queries: PairSet,
        index: PairSet | None = None,
        *,
        k: int = 20,
        batch_size: int = 256,
    ) -> None:
        if not queries.pairs:
            raise InvalidPairs("no pairs to evaluate")
        index = queries if index is None else index
        self._k, self._batch_size = k, batch_size
        known = [*index.pairs, *queries.pairs]
        self._texts = list(dict.fromkeys(pair.text for pair in known))
        self._images = list(dict.fromkeys(pair.image_key for pair in known))
        in_index = {pair.image_key for pair in index.pairs}

        def read(key: str) -> bytes:
            return (index if key in in_index else queries).image_bytes(key)

        self._tokens = tokenize(clip, self._texts)
        self._store = ImageStore(clip, self._images, read)
        text_number = {text: number for number, text in enumerate(self._texts)}
        image_number = {key: number for number, key in enumerate(self._images)}
        self._index_texts = _numbers(text_number, [pair.text for pair in index.pairs])
        self._index_images = _numbers(image_number, [pair.image_key for pair in index.pairs])
        self._query_texts = _numbers(text_number, [pair.text for pair in queries.pairs])
        self._query_images = _numbers(image_number, [pair.image_key for pair in queries.pairs])
        self._relevant = _relevance(known, text_number, image_number)

    def evaluate(self, clip: Clip) -> Evaluation:
        """Metrics of the model as it is now. Raises ValueError if an embedding is not finite."""
        texts = embed_tokens(clip, self._tokens, self._batch_size)
        images = self._embed_images(clip)
        joined = self._relevant
        metrics: dict[str, float] = {}
        for name, rows in (
            (TEXT_TO_IMAGE, _rows(texts, self._query_texts, images, self._index_images, joined)),
            (IMAGE_TO_TEXT, _rows(images, self._query_images, texts, self._index_texts, joined.T)),
        ):
            for metric, value in retrieval_metrics(rows, self._k).items():
                metrics[f"{name}_{metric}"] = value
        return Evaluation(metrics=metrics, k=self._k)

    def _embed_images(self, clip: Clip) -> NDArray[np.float64]:
        parts = [
            embed_pixels(clip, self._store.batch(range(i, min(i + self._batch_size, count))))
            for count in (len(self._images),)
            for i in range(0, count, self._batch_size)
        ]
        return np.concatenate(parts)


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


def _relevance(
    pairs: Sequence[Pair], text_number: dict[str, int], image_number: dict[str, int]
) -> NDArray[np.bool_]:
    """[texts, images] bool."""
    relevant = np.zeros((len(text_number), len(image_number)), dtype=np.bool_)
    groups: dict[str, tuple[set[int], set[int]]] = {}
    for pair in pairs:
        text, image = text_number[pair.text], image_number[pair.image_key]
        relevant[text, image] = True
        if pair.group is not None:
            texts, images = groups.setdefault(pair.group, (set(), set()))
            texts.add(text)
            images.add(image)
    for texts, images in groups.values():
        relevant[np.ix_(sorted(texts), sorted(images))] = True
    return relevant


def _rows(
    queries: NDArray[np.float64],
    query_numbers: NDArray[np.int64],
    index: NDArray[np.float64],
    index_numbers: NDArray[np.int64],
    relevant: NDArray[np.bool_],
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Scores and relevance of one query after the other, never all of them in memory."""
    candidates = index[index_numbers]
    for number in query_numbers:
        yield candidates @ queries[number], relevant[number, index_numbers]
