"""One tower in one precision, whose weights can be replaced without moving them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from hotclip_server.encoding.cuda.attention import use_last_block, use_sdpa
from hotclip_server.encoding.cuda.buckets import Bucket, Buckets
from hotclip_server.encoding.cuda.patches import PatchEmbedding
from hotclip_server.encoding.engines.eager import DTYPES
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.protocol import Tower
from hotclip_server.encoding.text_tower import TextTower, Trim

FOLDER = "name_or_path"
"""What transformers keeps of where a model was read: each version lies in a folder of its own."""


class CudaImages:
    """Pixels to features.

    Args:
        source: Of the architecture; `load` brings its weights.
    """

    def __init__(self, source: TowerSource, precision: str, batches: Sequence[int]) -> None:
        self._dtype = dtype_of(precision)
        size = source.preprocess.size
        height, width = (size, size) if isinstance(size, int) else size
        self.row_shape = (int(height), int(width), 3)
        self.buckets = Buckets.of_images(batches)
        self._model = part_of(source.model, Tower.VISION, self._dtype)
        visual: Any = self._model.visual
        self._patches: PatchEmbedding | None = None
        if type(visual) is VisionTransformer:
            use_sdpa(visual, causal=False)
            if visual.attn_pool is None and visual.pool_type == "tok" and not visual.output_tokens:
                use_last_block(visual.transformer)
            if PatchEmbedding.fits(visual.conv1, int(height), int(width)):
                self._patches = visual.conv1 = PatchEmbedding(
                    source.model.visual.conv1,  # type: ignore[union-attr, arg-type]  # open_clip is not typed
                    self._dtype,
                )
        shape = (1, 3, 1, 1)
        mean, std = (
            torch.tensor(values, device=source.device).view(shape)
            for values in (source.preprocess.mean, source.preprocess.std)
        )
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def row_bytes(self, length: int) -> int:
        """Bytes of one image."""
        return int(np.prod(self.row_shape))

    def write(self, rows: NDArray[np.uint8], batch: list[NDArray[Any]], length: int) -> None:
        """Writes images into uint8 (n, row_bytes)."""
        for row, pixels in zip(rows, batch, strict=True):
            row.reshape(self.row_shape)[:] = pixels

    def state(self) -> dict[str, Tensor]:
        """Everything that `load` replaces."""
        return self._model.state_dict()

    def load(self, source: TowerSource) -> None:
        """Copies the weights of a model of the same architecture into place."""
        load_into(self._model, source.model)
        if self._patches is not None:
            visual: Any = source.model.visual
            self._patches.load(visual.conv1, source.preprocess.mean, source.preprocess.std)

    def run(self, memory: Tensor, bucket: Bucket) -> Tensor:
        """The first `bucket.items` rows of uint8 [nbytes] to features [items, dim]."""
        pixels = memory[: bucket.items * self.row_bytes(1)].view(bucket.items, *self.row_shape)
        if self._patches is None:
            images = pixels.permute(0, 3, 1, 2) * self._scale + self._shift
            pixels = images.to(self._dtype, memory_format=torch.channels_last)
        features: Tensor = self._model.encode_image(pixels)  # type: ignore[operator]  # nn.Module attribute
        return features


class CudaTexts:
    """Token ids to features.

    Args:
        source: Of the architecture; `load` brings its weights.
    """

    row_shape = ()

    def __init__(self, source: TowerSource, precision: str, batches: Sequence[int]) -> None:
        self._model = part_of(source.model, Tower.TEXT, dtype_of(precision))
        tower: Any = self._model if isinstance(self._model, CLIP) else self._model.text
        if type(tower) in (CLIP, TextTransformer):
            # With a mask of each text's own, open_clip merges it with the causal one.
            own_mask = getattr(tower, "use_pad_mask", False)
            own_mask = own_mask or getattr(tower, "cls_emb", None) is not None
            use_sdpa(tower, causal=tower.attn_mask is not None and not own_mask)
        self._text = TextTower(self._model, source.context_length)
        self._tower = tower
        self._causal = self._text.trim is Trim.CAUSAL and use_last_block(tower.transformer)
        self.buckets = Buckets.of_texts(
            batches, source.context_length, trimmed=self._text.trim is not Trim.NONE
        )

    def row_bytes(self, length: int) -> int:
        """Bytes of the int64 ids of one text."""
        return 8 * length

    def write(self, rows: NDArray[np.uint8], batch: list[NDArray[Any]], length: int) -> None:
        """Writes texts into uint8 (n, row_bytes), padded to `length`."""
        whole = np.zeros(length, np.int64)
        rows.view(np.int64)[:] = self._text.pad([*batch, whole])[:-1]

    def state(self) -> dict[str, Tensor]:
        """Everything that `load` replaces."""
        return self._model.state_dict()

    def load(self, source: TowerSource) -> None:
        """Copies the weights of a model of the same architecture into place."""
        load_into(self._model, source.model)

    def run(self, memory: Tensor, bucket: Bucket) -> Tensor:
        """The first `bucket.items` rows of uint8 [nbytes] to features [items, dim]."""
        nbytes = bucket.items * self.row_bytes(bucket.length)
        ids = memory[:nbytes].view(torch.int64).view(bucket.items, bucket.length)
        return self._run_causal(ids) if self._causal else self._text.run(ids)

    def _run_causal(self, ids: Tensor) -> Tensor:
        """open_clip's `encode_text`, of which only the pooled token leaves the last block."""
        tower, length = self._tower, ids.shape[1]
        x = tower.token_embedding(ids) + tower.positional_embedding[:length]
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = block(x)  # its attention is causal without a mask
        x = tower.ln_final(last(x, places=self._text.pooled(ids))[:, 0])
        projection = tower.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        features: Tensor = x
        return features


CudaTower = CudaImages | CudaTexts


def build_tower(source: TowerSource, precision: str, batches: Sequence[int]) -> CudaTower:
    """A tower of this architecture, on the device; its weights come with `load`.

    Args:
        batches: Sizes that are captured.

    Raises:
        EngineUnfit: another precision than fp32, bf16 or fp16.
    """
    kind = CudaImages if source.tower is Tower.VISION else CudaTexts
    return kind(source, precision, batches)


def dtype_of(precision: str) -> torch.dtype:
    """
    Raises:
        EngineUnfit: it is not one of fp32, bf16, fp16.
    """
    if precision not in DTYPES:
        raise EngineUnfit(f"computes in fp32, bf16 or fp16, not in {precision}")
    return DTYPES[precision]


def part_of(model: nn.Module, tower: Tower, dtype: torch.dtype) -> nn.Module:
    """A copy of a model with one tower, in `dtype`; the other's modules are left out."""
    others = {
        id(child): nn.Identity()
        for name, child in model.named_children()
        if (name == "visual") != (tower is Tower.VISION)
    }
    # copy.deepcopy takes what it finds in the memo for the copy of what has this id.
    part: nn.Module = copy.deepcopy(model, dict(others))
    return part.to(dtype).eval().requires_grad_(False)


def load_into(part: nn.Module, model: nn.Module) -> None:
    """Copies the weights of `model` over those of the same name; addresses stay.

    Raises:
        RuntimeError: a shape is another, or a weight is missing.
    """
    weights = model.state_dict()
    with torch.no_grad():
        for name, target in part.state_dict().items():
            if _is_folded(part, name):
                continue
            if name not in weights or weights[name].shape != target.shape:
                raise RuntimeError(f"{name} is not in a model of the same architecture")
            target.copy_(weights[name])


def architecture_of(source: TowerSource, precision: str) -> str:
    """Equal for sources whose weights may take each other's place.

    sha256 over every module's kind and plain attributes and every weight's name and shape: a
    shape alone does not tell how many heads there are.
    """
    digest = hashlib.sha256()
    preprocess = source.preprocess
    parts: list[Any] = [source.tower.value, precision, str(source.device), source.context_length]
    parts += [preprocess.size, tuple(preprocess.mean), tuple(preprocess.std)]
    for name, module in source.model.named_modules():
        plain = {
            key: value
            for key, value in sorted(vars(module).items())
            if key != FOLDER and _is_plain_value(value)
        }
        parts.append((name, type(module).__qualname__, plain))
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "to_json_string"):
            parts.append(config.to_json_string())
    parts += [(name, tuple(value.shape)) for name, value in source.model.state_dict().items()]
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()


def _is_folded(part: nn.Module, name: str) -> bool:
    return type(part.get_submodule(name.rpartition(".")[0])) is PatchEmbedding


def _is_plain_value(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain_value(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
