"""From uint8 pixels to the tokens of a vision transformer in one product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CENTRE = 128.0
"""Subtracted from pixels: what is left is exact in bf16, and nothing large cancels. A float, so
that the difference of uint8 pixels may be negative."""


class PatchEmbedding(nn.Module):
    """Takes the place of a convolution of stride = size, with normalising folded into it.

    ((x / 255 - mean) / std)·w = (x - 128)·w / (255 std) + Σ w (128 / 255 - mean) / std

    Args:
        convolution: Of the same kind as those that `load` gets.
        dtype: In which it multiplies.
    """

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        width, _, size, _ = convolution.weight.shape
        device = convolution.weight.device
        self.size = size
        weight = torch.zeros(width, 3 * size * size, dtype=dtype, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros_like(weight[:, 0]), requires_grad=False)

    @staticmethod
    def fits(convolution: nn.Module, height: int, width: int) -> bool:
        """Whether it can take the place of this one for images of this size."""
        if type(convolution) is not nn.Conv2d or convolution.weight.shape[1] != 3:
            return False
        rows, columns = convolution.kernel_size
        return (
            rows == columns
            and convolution.stride == convolution.kernel_size
            and convolution.padding in (0, (0, 0), "valid")
            and convolution.dilation == (1, 1)
            and convolution.groups == 1
            and height % rows == 0
            and width % columns == 0
        )

    def load(self, convolution: nn.Conv2d, mean: Sequence[float], std: Sequence[float]) -> None:
        """Copies new weights into place."""
        exact = convolution.weight.detach().double()  # [out, 3, size, size]
        means, stds = (
            torch.tensor(list(values), dtype=torch.float64, device=exact.device).view(1, 3, 1, 1)
            for values in (mean, std)
        )
        bias = (exact * (CENTRE / 255 - means) / stds).sum((1, 2, 3))
        if convolution.bias is not None:
            bias = bias + convolution.bias.detach().double()
        folded = exact / (255 * stds)
        self.weight.copy_(folded.permute(0, 2, 3, 1).flatten(1))  # [size, size, 3]: as pixels lie
        self.bias.copy_(bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] to [n, out, rows, columns], a view of tokens."""
        n, height, width, _ = pixels.shape
        size = self.size
        rows, columns = height // size, width // size
        cut = pixels.view(n, rows, size, columns, size, 3).permute(0, 1, 3, 2, 4, 5)
        patches = torch.empty(cut.shape, dtype=self.weight.dtype, device=pixels.device)
        torch.sub(cut, CENTRE, out=patches)
        tokens = F.linear(patches.view(n, rows, columns, -1), self.weight, self.bias)
        return tokens.permute(0, 3, 1, 2)
