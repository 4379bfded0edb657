"""The engine of exact tricks: the towers that it knows, rewritten for serving.

Normalising and batch normalisation are folded into weights, weights are cast and packed once,
texts are packed without padding, and the last block computes only the token that is pooled.
Of other towers of timm and Hugging Face only the heavy layers are replaced; a tower that is
not exactly of a known class is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.timm_model import TimmModel
from torch import Tensor

from hotclip_server.encoding.engines.blocks import Compute
from hotclip_server.encoding.engines.causal_text import OpenClipText
from hotclip_server.encoding.engines.converted import ConvertedImages, ConvertedText
from hotclip_server.encoding.engines.eager import DTYPES, to_device
from hotclip_server.encoding.engines.linear import multiplies_in, packing_helps
from hotclip_server.encoding.engines.masked_text import HuggingFaceText
from hotclip_server.encoding.engines.parts import PartThreads, cut
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.resnet import OpenClipResNet
from hotclip_server.encoding.engines.sequences import Sequences, rounded_rows
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.engines.vit import OpenClipVit
from hotclip_server.encoding.protocol import Tower
from hotclip_server.pace import Pause, never

ImageTower = Callable[[Tensor], Tensor]
TextTower = Callable[[Tensor, Tensor, Sequences], Tensor]

LEAST_PRODUCTS = 2e9
"""Multiplications by weights of a part of a batch, of a transformer..."""
LEAST_IMAGES = 16
"""...and images of one, of a ResNet."""
MOST_ALONE = 1e9
"""Multiplications by weights of a batch that one core computes sooner than two: each layer would
wake the other up, which takes as long as a small layer where threads sleep while they wait."""


class TorchEngine:
    """Implements `Engine`.

    Args:
        precision: "fp32", "bf16" or "fp16".
        pause: Called between layers while it is made.
        parts: Large batches are divided among them; not on a GPU, and not if layers are those of
            a library, which may not be meant for two threads at once.

    Raises:
        EngineUnfit: the tower is not known, or the precision is another.
    """

    name = "torch"

    def __init__(
        self,
        source: TowerSource,
        precision: str,
        pause: Pause = never,
        parts: PartThreads | None = None,
    ) -> None:
        self.precision = precision
        self._device = source.device
        self._images: ImageTower | None = None
        self._texts: TextTower | None = None
        compute = compute_in(precision, source.device, pause)
        with torch.inference_mode():
            if source.tower is Tower.VISION:
                self._images = build_image_tower(source, compute)
            else:
                self._texts = build_text_tower(source, compute)
                self._pad_id = source.text.masked_id
        self.padded = isinstance(self._texts, ConvertedText)
        converted = isinstance(self._images or self._texts, ConvertedImages | ConvertedText)
        self._threads = None if converted or source.device.type != "cpu" else parts

    def run(self, batch: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """See `Engine.run`."""
        threads = self._threads
        if threads is None or threads.count == 1:
            return self._run(batch)
        tower: Any = self._images or self._texts
        lengths = [len(item) if item.ndim == 1 else 1 for item in batch]
        costs = [tower.products * length for length in lengths]
        least = LEAST_PRODUCTS
        if isinstance(tower, OpenClipResNet):
            least = LEAST_IMAGES * tower.products
        slices = cut(costs, threads.count, least)
        if len(slices) == 1 and sum(costs) > MOST_ALONE:
            return self._run(batch)
        return np.concatenate(threads.run([partial(self._run, batch[part]) for part in slices]))

    def _run(self, batch: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            if self._images is not None:
                features = self._images(to_device(np.stack(batch), self._device))
            elif self._texts is not None:
                features = self._texts(*pack_texts(batch, self._pad_id, self._device))
            else:
                raise RuntimeError("the engine is closed; this is a bug")
            rows: NDArray[np.float32] = features.float().cpu().numpy()
        return rows

    def close(self) -> None:
        """Frees the weights; no call may follow."""
        self._images = self._texts = None


def compute_in(precision: str, device: torch.device, pause: Pause = never) -> Compute:
    """How a tower computes in a precision on a device.

    Args:
        pause: Called between layers while they are made.

    Raises:
        EngineUnfit: another precision than fp32, bf16 or fp16, or one that the processor lacks.
    """
    if precision not in DTYPES:
        raise EngineUnfit(f"computes in fp32, bf16 or fp16, not in {precision}")
    dtype = DTYPES[precision]
    packed = packing_helps(device)
    if packed and not multiplies_in(dtype):
        raise EngineUnfit(f"this processor does not multiply in {precision}")
    return Compute(dtype=dtype, stream=torch.float32, packed=packed, pause=pause)


def build_image_tower(source: TowerSource, compute: Compute) -> ImageTower:
    """uint8 [n, height, width, 3] to fp32 [n, dim].

    Raises:
        EngineUnfit: not a tower known here.
    """
    kinds: list[Any] = [OpenClipVit, OpenClipResNet]
    if type(source.model.visual) is TimmModel:
        # timm takes half a second to import; here a model has brought it along.
        from hotclip_server.encoding.engines.timm_vit import TimmVit

        kinds = [TimmVit, ConvertedImages]
    tower: ImageTower = _first_fit(kinds, source, compute)
    return tower


def build_text_tower(source: TowerSource, compute: Compute) -> TextTower:
    """Packed ids and places to fp32 [n, dim].

    Raises:
        EngineUnfit: not a tower known here.
    """
    tower: TextTower = _first_fit([OpenClipText, HuggingFaceText, ConvertedText], source, compute)
    return tower


def pack_texts(
    batch: Sequence[NDArray[np.int64]], masked_id: int | None, device: torch.device
) -> tuple[Tensor, Tensor, Sequences]:
    """Ids [rows] and places [rows], one text after the other, without what is masked."""
    kept = [np.arange(len(ids)) for ids in batch]
    if masked_id is not None:
        # A text may hold the padding's token itself; then the tower doesn't look there either.
        kept = [
            at[ids != masked_id] if (ids == masked_id).any() else at
            for ids, at in zip(batch, kept, strict=True)
        ]
        kept = [at if len(at) else np.zeros(1, np.int64) for at in kept]
    lengths = [len(at) for at in kept]
    tokens = sum(lengths)
    packed = np.zeros((2, rounded_rows(tokens)), np.int64)
    np.concatenate([ids[at] for ids, at in zip(batch, kept, strict=True)], out=packed[0, :tokens])
    np.concatenate(kept, out=packed[1, :tokens])
    ids, places = to_device(packed, device)
    return ids, places, Sequences(lengths, device, packed.shape[1])


def _first_fit(kinds: Sequence[Any], source: TowerSource, compute: Compute) -> Any:
    reasons = []
    for kind in kinds:
        try:
            return kind(source, compute)
        except EngineUnfit as error:
            reasons.append(f"{kind.__name__}: {error}")
    raise EngineUnfit("; ".join(reasons))
