"""Random changes of a batch of training images, on tensors, from one generator."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from hotclip_server.training.config import AugmentConfig

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def augment(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Changed images: [n, 3, h, w] float32 in 0..1, like the input, which is left alone."""
    images = _move(images, config, generator)
    _some(images, config.outline, generator, _outline)
    _some(images, config.line_art, generator, _line_art)
    _some(images, config.hue, generator, _turn_hue)
    _relight(images, config.brightness, generator)
    _some(images, config.grey, generator, _fade)
    _some(images, config.blur, generator, _blur)
    return images


def _uniform(count: int, generator: Generator) -> Tensor:
    """[count, 1, 1, 1] in 0..1."""
    return torch.rand(count, 1, 1, 1, generator=generator)


def _some(
    images: Tensor,
    probability: float,
    generator: Generator,
    change: Callable[[Tensor, Generator], Tensor],
) -> None:
    """Change each image in place with this probability."""
    if probability <= 0:
        return
    chosen = (torch.rand(len(images), generator=generator) < probability).nonzero()[:, 0]
    if len(chosen) > 0:
        images.index_copy_(0, chosen, change(images[chosen], generator))


def _relight(images: Tensor, most: float, generator: Generator) -> None:
    """Change contrast and brightness in place, each by a factor of 1 ± `most`."""
    if most <= 0:
        return
    contrast, light = (
        1 + most * (2 * _uniform(len(images), generator) - 1) for _ in range(2)
    )  # pixels become ((x - mean) * contrast + mean) * light
    offset = images.mean(dim=(1, 2, 3), keepdim=True) * (1 - contrast) * light
    images.mul_(contrast * light).add_(offset).clamp_(0, 1)


def _move(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Random crop or shrink with the aspect ratio kept, shift and rotation; a new tensor.

    What comes in from outside the image is its border, repeated.
    """
    low, high = config.crop
    if low == high == 1 and config.shift == 0 and config.rotate == 0:
        return images.clone()
    count = len(images)
    scale, x, y, turn = torch.rand(4, count, generator=generator)
    scale = low + (high - low) * scale  # share of the side that is kept
    inside = (1 - scale).clamp(min=0)  # a crop stays inside the image
    reach = inside + 2 * config.shift
    x, y = (2 * x - 1) * reach, (2 * y - 1) * reach
    angle = (2 * turn - 1) * math.radians(config.rotate)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack(
        [torch.stack([cosine, -sine, x], dim=1), torch.stack([sine, cosine, y], dim=1)], dim=1
    )  # [n, 2, 3]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _edges(images: Tensor, generator: Generator) -> Tensor:
    """[n, 1, h, w] in 0..1: strength of the edges, half of them thick."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]).abs().amax(dim=1, keepdim=True)
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]).abs().amax(dim=1, keepdim=True)
    edges = (across + down) * (1.5 + 2.5 * _uniform(len(images), generator))
    thick = F.max_pool2d(edges, 3, stride=1, padding=1)
    return torch.where(_uniform(len(images), generator) < 0.5, thick, edges).clamp(0, 1)


def _outline(images: Tensor, generator: Generator) -> Tensor:
    return images * (1 - _edges(images, generator))


def _line_art(images: Tensor, generator: Generator) -> Tensor:
    return (1 - _edges(images, generator)).expand_as(images)


def _turn_hue(images: Tensor, generator: Generator) -> Tensor:
    """Rotate colours about the grey axis (Rodrigues' formula), each image by its own angle."""
    angle = 2 * math.pi * torch.rand(len(images), generator=generator)
    third, root = 1 / 3, math.sqrt(1 / 3)
    cosine, sine = angle.cos(), angle.sin()
    same = cosine + (1 - cosine) * third
    before = (1 - cosine) * third - root * sine
    after = (1 - cosine) * third + root * sine
    rows = [
        torch.stack(row, dim=1)
        for row in ([same, before, after], [after, same, before], [before, after, same])
    ]
    return torch.einsum("nij,njhw->nihw", torch.stack(rows, dim=1), images).clamp(0, 1)


def _fade(images: Tensor, generator: Generator) -> Tensor:
    """Half of them wholly grey, the others in part."""
    luma = torch.tensor(_LUMA).view(1, 3, 1, 1)
    grey = (images * luma).sum(dim=1, keepdim=True)
    share = (2 * _uniform(len(images), generator)).clamp(max=1)
    return images.lerp(grey.expand_as(images), share)


def _blur(images: Tensor, generator: Generator) -> Tensor:
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return images.lerp(soft, _uniform(len(images), generator))
