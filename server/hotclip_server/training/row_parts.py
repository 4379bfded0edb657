"""Parts of a batch's rows, each of which one core takes forward and backward.

What lies between the products of a layer keeps one thread busy, and small products divide unevenly
among threads: a part a core has no such gaps. Which rows are a part follows from how many threads
torch uses, which a state records, and parts are added up in their order, not in that in which they
end: a step gives the same bits every time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from open_clip.model import CLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from hotclip_server.encoding.engines.parts import PartThreads, T
from hotclip_server.training.clip import Clip, count_weights
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.dropout import draws_in_training

LEAST_ROWS = 4
"""Of a part; fewer rows run as one."""
MOST_WEIGHTS = 50_000_000
"""Of a model: each part has gradients of its own, which take as much memory, and larger products
keep several threads busy."""


class RowParts:
    """Threads that compute parts at the same time; while they don't run, a batch is one part.

    Args:
        model: Whose parameters get the gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._threads: PartThreads | None = None

    @contextmanager
    def running(self, *, wanted: bool) -> Iterator[None]:
        """Inside, there are as many parts as torch uses threads, if that is not one or too many."""
        if not wanted:
            yield
            return
        self._threads = threads = PartThreads(name="hotclip-train-part")
        threads.start()
        try:
            yield
        finally:
            self._threads = None
            threads.stop()

    def cut(self, rows: slice) -> list[slice]:
        """Parts of nearly equal size, in order; all of it as one if they would be too small."""
        count = self._threads.count if self._threads is not None else 1
        size = rows.stop - rows.start
        if count == 1 or size < LEAST_ROWS * count:
            return [rows]
        edges = [rows.start + size * i // count for i in range(count + 1)]
        return [slice(begin, end) for begin, end in pairwise(edges)]

    def run(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What they return, in their order; raises what the first of them raises when all have
        ended. Gradients are on in them, whatever they are here."""
        if self._threads is None:
            raise RuntimeError("parts run outside of `running`; this is a bug")
        return self._threads.run(works)

    def parameters(self) -> list[nn.Parameter]:
        """Those that need a gradient."""
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def gradients(
        self, features: Sequence[Tensor], given: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        """Of `parameters`, from the gradients of features; for use in `run`.

        Not backward(), by which several threads would add to one tensor in any order.
        """
        pairs = [(f, g) for f, g in zip(features, given, strict=True) if g is not None]
        return torch.autograd.grad(
            [feature for feature, _ in pairs],
            self.parameters(),
            [gradient for _, gradient in pairs],
            allow_unused=True,
        )

    @torch.no_grad()
    def add(self, parts: Sequence[tuple[Tensor | None, ...]]) -> None:
        """Adds what `gradients` gave for each part to the parameters, in the order of the parts."""
        uses = Counter(_place(term) for part in parts for term in part if term is not None)
        for parameter, *found in zip(self.parameters(), *parts, strict=True):
            terms = [term for term in (parameter.grad, *found) if term is not None]
            if not terms:
                continue
            total, *others = terms
            # Autograd may give two parameters one tensor, or one that repeats fewer numbers; and
            # it must lie in memory as the parameter does, which fused optimizers rely on.
            alone = uses[_place(total)] <= 1 and total.untyped_storage().nbytes() == total.nbytes
            if not alone or total.stride() != parameter.stride():
                total = torch.empty_like(parameter).copy_(total)
            for term in others:
                total += term
            parameter.grad = total


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def exact_in_parts(clip: Clip, config: TrainConfig) -> bool:
    """Whether rows do not depend on each other, and towers may run on several threads at once.

    Not where a tower draws numbers, learns statistics of a batch or is watched by hooks; of
    open_clip's own towers alone, whose code keeps nothing between two calls; in fp32, because
    autocast shares its copies of weights among threads; of small models. BatchNorms must stand
    still.
    """
    vision = type(clip.model.visual)
    own = type(clip.model) is CLIP and vision in (VisionTransformer, ModifiedResNet)
    return (
        clip.device.type == "cpu"
        and own
        and count_weights(clip.model) <= MOST_WEIGHTS
        and config.precision == "fp32"
        and config.preserve == 0
        and not config.train_batch_norm
        and not draws_in_training(clip.model)
    )
