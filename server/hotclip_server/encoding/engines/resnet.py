"""open_clip's ModifiedResNet: batch normalisation folded into convolutions, channels last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from open_clip.modified_resnet import AttentionPool2d, Bottleneck, ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional as F

from hotclip_server.encoding.engines.blocks import Compute, OneQuery
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.source import TowerSource

_PLAIN = ([1, 1], 1)
"""Dilation and groups."""


class Convolution:
    """A convolution with the batch normalisation after it, and a ReLU.

    The normalisation is y·g + b with g = weight / √(variance + eps): folded into the weights.

    Args:
        scale: fp32 [in]: what its input is multiplied with besides.
    """

    def __init__(
        self,
        convolution: nn.Conv2d,
        norm: nn.BatchNorm2d,
        compute: Compute,
        *,
        relu: bool,
        scale: Tensor | None = None,
    ) -> None:
        if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
            raise EngineUnfit("a convolution or its normalisation is not plain")
        if norm.running_var is None or norm.running_mean is None or convolution.bias is not None:
            raise EngineUnfit("a batch normalisation has no statistics")
        gain = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        weight = convolution.weight.detach() * gain[:, None, None, None]
        if scale is not None:
            weight = weight * scale[None, :, None, None]
        # oneDNN adds a bias in fp32. Rounded to bf16 it would be most of the error: what is
        # folded into it cancels against the sum.
        self._onednn = compute.packed
        bias = norm.bias.detach() - norm.running_mean * gain
        self._bias = bias if self._onednn else bias.to(compute.dtype)
        self._weight = weight.to(compute.dtype).contiguous(memory_format=torch.channels_last)
        self._padding: list[int] = list(convolution.padding)  # type: ignore[arg-type]  # never a word here
        self._stride = list(convolution.stride)
        self._relu = relu
        self.weights = self._weight.numel()
        compute.pause()

    def __call__(self, x: Tensor) -> Tensor:
        """[n, in, height, width] to [n, out, ...]."""
        return self._run(x, self._bias, relu=self._relu)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """ReLU of the result and `residual` together, summed in fp32 and rounded once."""
        y = self._run(x, None, relu=False)
        return F.relu_(y + self._bias.float().view(1, -1, 1, 1) + residual).to(x.dtype)

    def _run(self, x: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        if self._onednn:
            after = "relu" if relu else "none"
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, self._weight, bias, self._padding, self._stride, *_PLAIN, after, [], ""
            )
            return y
        y = F.conv2d(x, self._weight, bias, self._stride, self._padding)
        return F.relu_(y) if relu else y


class OpenClipResNet:
    """`open_clip.modified_resnet.ModifiedResNet`.

    Attributes:
        products: Multiplications by weights of convolutions for each image.
    """

    def __init__(self, source: TowerSource, compute: Compute) -> None:
        visual: Any = source.model.visual
        if type(visual) is not ModifiedResNet or type(visual.attnpool) is not AttentionPool2d:
            raise EngineUnfit("not a ModifiedResNet")
        device = source.device
        self._dtype = compute.dtype
        # Padding is zero after normalising: only the subtraction happens here.
        self._mean = 255 * torch.tensor(source.preprocess.mean, device=device).view(1, 3, 1, 1)
        scale = 1 / (255 * torch.tensor(source.preprocess.std, device=device))
        self._stem = [
            Convolution(visual.conv1, visual.bn1, compute, relu=True, scale=scale),
            Convolution(visual.conv2, visual.bn2, compute, relu=True),
            Convolution(visual.conv3, visual.bn3, compute, relu=True),
        ]
        self._halve = visual.avgpool
        stages: Iterable[Any] = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        self._blocks = [_Bottleneck(block, compute) for stage in stages for block in stage]
        self._pool = _Pool(visual.attnpool, compute)
        size: Any = source.preprocess.size
        height, width = (size, size) if isinstance(size, int) else size
        places = height * width // 4  # the first convolution halves both sides, as does the pool
        self.products = places * sum(convolution.weights for convolution in self._stem)
        places //= 4
        for block in self._blocks:
            products, places = block.products(places)
            self.products += products

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] to fp32 [n, dim]."""
        x = (pixels.permute(0, 3, 1, 2) - self._mean).to(self._dtype)
        for convolution in self._stem:
            x = convolution(x)
        x = self._halve(x)
        for block in self._blocks:
            x = block(x)
        return self._pool(x)


class _Bottleneck:
    def __init__(self, block: Any, compute: Compute) -> None:
        if type(block) is not Bottleneck:
            raise EngineUnfit(f"{type(block).__name__} is not a block known here")
        self._first = Convolution(block.conv1, block.bn1, compute, relu=True)
        self._second = Convolution(block.conv2, block.bn2, compute, relu=True)
        self._third = Convolution(block.conv3, block.bn3, compute, relu=True)
        self._shrink = block.avgpool
        self._side: Convolution | None = None
        if block.downsample is not None:
            self._side_shrink = block.downsample[0]
            self._side = Convolution(block.downsample[1], block.downsample[2], compute, relu=False)
        self._shrinks = type(block.avgpool) is not nn.Identity

    def products(self, places: int) -> tuple[int, int]:
        """Multiplications by weights for so many places, and how many places are left."""
        before = places * (self._first.weights + self._second.weights)
        left = places // 4 if self._shrinks else places
        side = 0 if self._side is None else self._side.weights
        return before + left * (self._third.weights + side), left

    def __call__(self, x: Tensor) -> Tensor:
        inner = self._shrink(self._second(self._first(x)))
        if self._side is not None:
            x = self._side(self._side_shrink(x))
        return self._third.plus(inner, x)


class _Pool:
    """Attention of the mean over all places and itself; only its own result counts.

    In fp32: there is one query an image, so it is little work.
    """

    def __init__(self, pool: Any, compute: Compute) -> None:
        compute = replace(compute, dtype=torch.float32)
        self._position = pool.positional_embedding.detach().to(compute.dtype)
        self._query = compute.linear(pool.q_proj.weight, pool.q_proj.bias)
        self._attention = OneQuery(
            pool.num_heads, pool.k_proj.weight, pool.v_proj.weight, pool.v_proj.bias, compute.dtype
        )
        self._out = compute.linear(pool.c_proj.weight, pool.c_proj.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """[n, width, rows, columns] to [n, dim]."""
        tokens = x.float().flatten(2).transpose(1, 2)  # [n, places, width]
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + self._position
        return self._out(self._attention(self._query(tokens[:, 0]), tokens, None))
