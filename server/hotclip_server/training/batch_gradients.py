"""The gradient of a whole batch in the memory there is: augments it, cuts it, and cuts it finer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from hotclip_server.training.augment import DRAWS, augment
from hotclip_server.training.breathing import breathing
from hotclip_server.training.chunking import PROBED, chunk_rows, kept_bytes, out_of_memory
from hotclip_server.training.clip import Clip
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.dataset import Batch, TrainingSet
from hotclip_server.training.dropout import draws_in_training
from hotclip_server.training.events import Chunk, ChunkHalved, TrainEvent
from hotclip_server.training.folding import folded
from hotclip_server.training.gradients import IMAGE, TEXT, Drawing, GradientCache, Gradients
from hotclip_server.training.objective import Objective
from hotclip_server.training.one_query import one_query
from hotclip_server.training.progress import Progress
from hotclip_server.training.row_parts import RowParts, exact_in_parts
from hotclip_server.training.sampler import sample_draws, step_seed
from hotclip_server.training.towers import Towers


class BatchGradients:
    """Of one run.

    Args:
        config: Without "auto"; see `TrainConfig.resolved`.
        drawing, free_bytes: See `Trainer`.
    """

    def __init__(
        self,
        clip: Clip,
        config: TrainConfig,
        data: TrainingSet,
        towers: Towers,
        drawing: Drawing,
        free_bytes: Callable[[], int | None],
    ) -> None:
        self._clip = clip
        self._config = config
        self._set = data
        self._free_bytes = free_bytes
        self._parts = RowParts(clip.model)
        self._cache = GradientCache(
            towers=towers,
            objective=Objective(clip.model, config),
            drawing=drawing,
            draws=draws_in_training(clip.model),
            parts=self._parts,
        )

    @contextmanager
    def passes(self, pause: Callable[[], object] | None) -> Iterator[None]:
        """Inside, passes let others go first between layers, compute only what reaches their
        result, and each core takes a part of the rows, where that is exact.

        Args:
            pause: See `breathing`.
        """
        model = self._clip.model
        in_parts = self._parts.running(wanted=exact_in_parts(self._clip, self._config))
        with breathing(model, pause), folded(model), one_query(model), in_parts:
            yield

    def fitting_chunk(self) -> int:
        """Rows that run together, by what two rows keep, in the modes of training."""
        config = self._config
        size = self._set.rows_with(
            min(config.batch_size, self._set.images), config.mining.count if config.mining else 0
        )
        if config.train_batch_norm:
            return size
        batch = self._set.blank(PROBED)
        every = slice(0, PROBED)

        def kept(tower: int) -> float:
            """Bytes of a row."""
            blank = batch.images.to(self._clip.device).float()
            forward = partial(self._cache.features, tower, batch, lambda _: blank, 0, every)
            return kept_bytes(forward) / PROBED

        return chunk_rows(size, kept(IMAGE), kept(TEXT), self._free_bytes())

    def backward(
        self, batch: Batch, progress: Progress, epoch: int
    ) -> Generator[TrainEvent, None, Gradients]:
        """Into the parameters, which hold nothing else then; once more in smaller chunks, noted in
        `progress`, if memory was full."""
        seed = step_seed(self._config.seed, progress.step)
        while True:
            self._clip.model.zero_grad(set_to_none=True)
            try:
                pixels = self._pixels(batch, epoch)
                chunks = self._cache.backward(batch, pixels, seed, progress.chunk_size)
                while True:
                    try:
                        next(chunks)
                    except StopIteration as end:
                        gradients: Gradients = end.value
                        return gradients
                    yield Chunk(step=progress.step + 1)
            except (MemoryError, RuntimeError) as error:
                if not self._can_halve(error, progress):
                    raise
            del chunks  # and with it what the failed pass had kept
            self._clip.model.zero_grad(set_to_none=True)
            rows = min(progress.chunk_size, max(len(batch.images), len(batch.tokens)))
            progress.chunk_size = -(-rows // 2)
            yield ChunkHalved(step=progress.step + 1, chunk_size=progress.chunk_size)

    def _can_halve(self, error: Exception, progress: Progress) -> bool:
        # Statistics of a batch norm that learns depend on what runs together.
        learns_statistics = self._config.train_batch_norm
        return out_of_memory(error) and progress.chunk_size > 1 and not learns_statistics

    def _pixels(self, batch: Batch, epoch: int) -> Callable[[slice], Tensor]:
        """Augmented images of some rows, float in 0..1 on the device."""
        if batch.image_features is not None:
            return batch.images.__getitem__  # nobody asks for any
        config, device = self._config, self._clip.device
        numbers = batch.image_keys[0].numpy()
        draws = torch.from_numpy(sample_draws(numbers, config.seed, epoch, DRAWS))

        def rows(part: slice) -> Tensor:
            images = batch.images[part].to(device).float().div_(255)
            return augment(images, config.augment, draws[part].to(device))

        return rows
