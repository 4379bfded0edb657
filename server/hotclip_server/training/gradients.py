"""The exact gradient of one batch in the memory of a chunk (gradient cache).

Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup": the
features of all chunks without graph, the loss on all of them, then each chunk once more with the
gradient of its features. The loss is computed once, so that the scale gets the gradient of one
batch, and each row draws the same dropout both times. A batch of one chunk is one ordinary pass.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from hotclip_server.training.dataset import Batch
from hotclip_server.training.dropout import rows_drawn
from hotclip_server.training.objective import Objective
from hotclip_server.training.row_parts import RowParts
from hotclip_server.training.towers import Towers

IMAGE, TEXT = 0, 1  # each tower draws numbers of its own
Drawing = Callable[[], AbstractContextManager[None]]
"""Entered around operations that may draw random numbers on the device."""


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """What a backward pass gave besides the gradients, which are in the parameters.

    `loss` is a scalar, `image` is [p, width] and `text` [q, width]; no graph.
    """

    loss: Tensor
    image: Tensor
    text: Tensor


@dataclass(frozen=True, kw_only=True)
class GradientCache:
    """How gradients are computed; keeps nothing between batches.

    `draws`: whether the towers draw random numbers in training. `parts`: what computes rows on
    several cores.
    """

    towers: Towers
    objective: Objective
    drawing: Drawing
    draws: bool
    parts: RowParts

    def backward(
        self, batch: Batch, pixels: Callable[[slice], Tensor], seed: int, chunk_size: int
    ) -> Generator[None, None, Gradients]:
        """Adds the gradients of the batch's loss to the parameters; pauses between chunks.

        Args:
            pixels: Float images in 0..1 of some rows of the batch; the same each time.
            seed: Of dropout.
            chunk_size: Most rows of a tower that run together.
        """
        step = _Step(self, batch, pixels, seed)
        if chunk_size >= max(len(batch.images), len(batch.tokens)):
            return step.at_once()
        return (yield from step.in_chunks(chunk_size))

    def features(
        self, tower: int, batch: Batch, pixels: Callable[[slice], Tensor], seed: int, part: slice
    ) -> Tensor:
        """What a tower, IMAGE or TEXT, gives for some rows of a batch, with its graph if it is
        trained; the same each time. `pixels` and `seed` are as for `backward`."""
        known = batch.image_features if tower == IMAGE else batch.text_features
        if known is not None:
            return known[part].to(self.towers.device)
        own = 2 * seed + tower
        with self.drawing(), rows_drawn(own, part.start, active=self.draws):
            if tower == IMAGE:
                return self.towers.image(pixels(part))
            return self.towers.text(batch.tokens[part])


class _Step:
    def __init__(
        self, cache: GradientCache, batch: Batch, pixels: Callable[[slice], Tensor], seed: int
    ) -> None:
        self._cache = cache
        self._batch = batch
        self._pixels = pixels
        self._seed = seed

    def at_once(self) -> Gradients:
        batch, parts = self._batch, self._cache.parts
        images = parts.cut(slice(0, len(batch.images)))
        texts = parts.cut(slice(0, len(batch.tokens)))
        if len(images) > 1 and len(texts) > 1:
            return self._in_parts(images, texts)
        image = self._features(IMAGE, slice(0, len(batch.images)))
        text = self._features(TEXT, slice(0, len(batch.tokens)))
        loss = self._cache.objective(image, text, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return Gradients(loss=loss.detach(), image=image.detach(), text=text.detach())

    def _in_parts(self, images: list[slice], texts: list[slice]) -> Gradients:
        """Each part keeps its graph until the loss of all is known."""
        parts = self._cache.parts
        rows = list(zip(images, texts, strict=True))
        made = parts.run([partial(self._both, image, text) for image, text in rows])
        leaves = [self._leaf(tower, [part[tower] for part in made]) for tower in (IMAGE, TEXT)]
        done = self._loss(leaves)
        given = [(_rows(leaves[IMAGE], i), _rows(leaves[TEXT], t)) for i, t in rows]
        works = [partial(parts.gradients, *one) for one in zip(made, given, strict=True)]
        parts.add(parts.run(works))
        return done

    def in_chunks(self, chunk_size: int) -> Generator[None, None, Gradients]:
        leaves: list[Tensor] = []
        batch = self._batch
        for tower, rows, known in (
            (IMAGE, len(batch.images), batch.image_features),
            (TEXT, len(batch.tokens), batch.text_features),
        ):
            features = []
            for chunk in cut(rows, rows if known is not None else chunk_size):
                features += self._without_graph(tower, chunk)
                yield
            leaves.append(self._leaf(tower, features))
        done = self._loss(leaves)
        for tower, leaf in enumerate(leaves):
            if leaf.grad is None:
                continue
            for chunk in cut(len(leaf), chunk_size):
                self._again(tower, chunk, leaf.grad)
                yield
        return done

    def _without_graph(self, tower: int, chunk: slice) -> list[Tensor]:
        parts = self._cache.parts
        rows = parts.cut(chunk)
        if len(rows) == 1:
            return [self._detached(tower, chunk)]
        return parts.run([partial(self._detached, tower, part) for part in rows])

    def _again(self, tower: int, chunk: slice, gradient: Tensor) -> None:
        """Adds the gradients of a chunk, from that of all features of its tower."""
        parts = self._cache.parts
        rows = parts.cut(chunk)
        if len(rows) == 1:
            torch.autograd.backward(self._features(tower, chunk), gradient[chunk])
            return

        def work(part: slice) -> tuple[Tensor | None, ...]:
            return parts.gradients([self._features(tower, part)], [gradient[part]])

        parts.add(parts.run([partial(work, part) for part in rows]))

    def _leaf(self, tower: int, features: list[Tensor]) -> Tensor:
        joined = torch.cat([part.detach() for part in features])
        return joined.requires_grad_(self._trains(tower))

    def _loss(self, leaves: list[Tensor]) -> Gradients:
        """Gives the leaves, features of both towers, their gradients."""
        image, text = leaves
        loss = self._cache.objective(image, text, self._batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return Gradients(loss=loss.detach(), image=image.detach(), text=text.detach())

    def _both(self, image: slice, text: slice) -> tuple[Tensor, Tensor]:
        return self._features(IMAGE, image), self._features(TEXT, text)

    def _detached(self, tower: int, part: slice) -> Tensor:
        with torch.no_grad():
            return self._features(tower, part)

    def _trains(self, tower: int) -> bool:
        towers = self._cache.towers
        return towers.trains_image if tower == IMAGE else towers.trains_text

    def _features(self, tower: int, part: slice) -> Tensor:
        return self._cache.features(tower, self._batch, self._pixels, self._seed, part)


def _rows(leaf: Tensor, part: slice) -> Tensor | None:
    """Of its gradient, if it has one."""
    return leaf.grad[part] if leaf.grad is not None else None


def cut(rows: int, chunk_size: int) -> Iterator[slice]:
    """Nearly equal parts of at most `chunk_size` rows, in order."""
    count = -(-rows // chunk_size)
    edges = [rows * i // count for i in range(count + 1)]
    for begin, end in pairwise(edges):
        yield slice(begin, end)
