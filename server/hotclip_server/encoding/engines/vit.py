"""Vision transformers of open_clip, from uint8 pixels to features."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import Transformer, VisionTransformer
from torch import Tensor, nn

from hotclip_server.encoding.engines.blocks import (
    PRODUCTS_A_LAYER,
    Block,
    Compute,
    LastBlock,
    open_clip_block,
)
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.sequences import Sequences
from hotclip_server.encoding.engines.source import TowerSource

CENTRE = 128
"""Subtracted from pixels before they are multiplied: exact in bf16, and nothing cancels."""


class Patches:
    """Pixels to patches to tokens: normalising is folded into the weights.

    A convolution of stride = size without padding is a product, so ((x / 255 - mean) / std)·w
    is (x - 128)·w / (255 std) + (128 / 255 - mean)/std·w.
    """

    def __init__(self, convolution: nn.Conv2d, source: TowerSource, compute: Compute) -> None:
        plain = convolution.padding in ((0, 0), 0) and convolution.dilation == (1, 1)
        if not plain or convolution.groups != 1 or convolution.stride != convolution.kernel_size:
            raise EngineUnfit("the patches overlap or are padded")
        weight = convolution.weight.detach()  # [width, 3, size, size]
        std = torch.tensor(source.preprocess.std, device=weight.device).view(1, 3, 1, 1)
        mean = torch.tensor(source.preprocess.mean, device=weight.device).view(1, 3, 1, 1)
        folded = weight / (255 * std)
        self.bias = (weight * ((CENTRE / 255 - mean) / std)).sum((1, 2, 3))
        if convolution.bias is not None:
            self.bias = self.bias + convolution.bias.detach()
        self._size: int = convolution.kernel_size[0]
        self._dtype = compute.dtype
        # [size, size, 3] as the pixels lie in memory.
        self._project = compute.linear(folded.permute(0, 2, 3, 1).flatten(1), None)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] to [n, patches, tower's width], without `bias`."""
        n, height, width, _ = pixels.shape
        size = self._size
        rows, columns = height // size, width // size
        centred = (pixels ^ CENTRE).view(torch.int8)  # the other sign bit: x - 128
        cut = centred[:, : rows * size, : columns * size].reshape(n, rows, size, columns, size * 3)
        patches = cut.transpose(2, 3).to(self._dtype, memory_format=torch.contiguous_format)
        return self._project(patches.view(n, rows * columns, -1))


class OpenClipVit:
    """`open_clip.transformer.VisionTransformer`, pooled at its class token or by the mean."""

    def __init__(self, source: TowerSource, compute: Compute) -> None:
        visual: Any = source.model.visual
        plain = type(visual) is VisionTransformer and type(visual.transformer) is Transformer
        if not plain or visual.attn_pool is not None or visual.output_tokens:
            raise EngineUnfit("not a plain VisionTransformer")
        if visual.pool_type not in ("tok", "avg"):
            raise EngineUnfit(f"pools by {visual.pool_type!r}")
        self._compute = compute
        self._patches = Patches(visual.conv1, source, compute)
        position = visual.positional_embedding.detach()  # [1 + patches, width]
        self._class = (visual.class_embedding.detach() + position[0]).to(compute.stream)
        self._position = (position[1:] + self._patches.bias).to(compute.stream)
        self._norm_before = visual.ln_pre
        blocks = [open_clip_block(block) for block in visual.transformer.resblocks]
        self._by_class = visual.pool_type == "tok"
        self._blocks = [Block(weights, compute, causal=False) for weights in blocks]
        self._last: LastBlock | None = None
        if self._by_class:
            self._blocks.pop()
            self._last = LastBlock(blocks[-1], compute)
        rows, width = self._position.shape
        self.products = PRODUCTS_A_LAYER * len(blocks) * width**2 * rows
        self._norm_after, self._after_pool = visual.ln_post, visual.final_ln_after_pool
        self._projection: Tensor | None = visual.proj

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] to fp32 [n, dim]."""
        patches = self._patches(pixels)
        n, count, width = patches.shape
        x = torch.empty(n, 1 + count, width, dtype=self._compute.stream, device=patches.device)
        x[:, 0] = self._class
        torch.add(patches, self._position, out=x[:, 1:])
        x = self._norm_before(x.float()).to(self._compute.stream).view(-1, width)
        sequences = Sequences([1 + count] * n, patches.device)
        for block in self._blocks:
            x = block(x, sequences)
        pooled = self._pool(x, sequences).float()
        return pooled if self._projection is None else pooled @ self._projection

    def _pool(self, x: Tensor, sequences: Sequences) -> Tensor:
        if self._last is not None:
            tokens: Tensor = self._norm_after(self._last(x, sequences, sequences.first).float())
            return tokens
        tokens = sequences.pad(x).float()
        if self._after_pool:
            pooled: Tensor = self._norm_after(tokens[:, 1:].mean(1))
            return pooled
        return self._norm_after(tokens)[:, 1:].mean(1)  # type: ignore[no-any-return]  # open_clip is not typed
