"""A BatchNorm that stands still, inside the convolution before it.

With fixed statistics it multiplies and shifts each channel, which the weights of the convolution
can do as well: y = γ/σ · (W * x) + (β - μγ/σ) = (γ/σ · W) * x + (β - μγ/σ). The gradients of W, γ
and β are those of the two layers; what is saved is a pass over the activations each way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def folded(model: nn.Module) -> Iterator[int]:
    """Inside, each convolution that a BatchNorm follows in evaluation mode does both; which
    follow one another is told by their names. Yields how many pairs there are."""
    pairs = list(_pairs(model))
    with ExitStack() as stack:
        for convolution, norm in pairs:
            stack.callback(_Fold(convolution, norm).undo)
        yield len(pairs)


class _Fold:
    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        self._convolution, self._norm = convolution, norm
        convolution.forward = self._both  # type: ignore[method-assign]
        norm.forward = self._rest  # type: ignore[method-assign]

    def undo(self) -> None:
        del self._convolution.forward, self._norm.forward

    def _both(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        convolution, norm = self._convolution, self._norm
        if norm.training:
            return nn.Conv2d.forward(convolution, input)
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise RuntimeError("a BatchNorm without statistics is no pair; this is a bug")
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        shift = norm.bias - mean * scale
        if convolution.bias is not None:
            shift = shift + convolution.bias * scale
        weight = convolution.weight * scale[:, None, None, None]
        both: Tensor = convolution._conv_forward(input, weight, shift)
        return both

    def _rest(self, input: Tensor) -> Tensor:  # noqa: A002 - likewise
        return nn.BatchNorm2d.forward(self._norm, input) if self._norm.training else input


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """`conv3` and `bn3` of one block, and neighbours in a sequence."""
    for module in model.modules():
        named = dict(module.named_children())
        followers = {name: named.get(f"bn{name.removeprefix('conv')}") for name in named}
        if isinstance(module, nn.Sequential):
            followers = dict(zip(named, list(named.values())[1:], strict=False))
        for name, follower in followers.items():
            convolution = named[name]
            if (
                type(convolution) is nn.Conv2d
                and type(follower) is nn.BatchNorm2d
                and follower.num_features == convolution.out_channels
                and follower.affine
                and follower.track_running_stats
            ):
                yield convolution, follower
