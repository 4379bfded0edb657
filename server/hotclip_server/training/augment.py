"""Random changes of training images, on tensors; what each image gets is its own draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hotclip_server.training.config import AugmentConfig

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


DRAWS = 18
"""Numbers that an image needs; each change has its own, whether it is on or not."""


def augment(images: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Changed images: [n, 3, h, w] float32 in 0..1, like the input, which is left alone.

    `draws` is [n, DRAWS], uniform in [0, 1), on the device of the images: row i decides what
    becomes of image i, whatever other images there are.
    """
    column = iter(draws.view(len(images), DRAWS, 1, 1, 1).unbind(dim=1))  # each [n, 1, 1, 1]
    images = _move(images, config, column)
    _some(images, config.outline, column, 2, _outline)
    _some(images, config.line_art, column, 2, _line_art)
    _some(images, config.hue, column, 1, _turn_hue)
    _relight(images, config.brightness, column)
    _some(images, config.grey, column, 1, _fade)
    _some(images, config.blur, column, 1, _blur)
    return images


Columns = Iterator[Tensor]


def _some(
    images: Tensor,
    probability: float,
    column: Columns,
    needed: int,
    change: Callable[..., Tensor],
) -> None:
    """Change each image in place with this probability; `change` gets `needed` more draws."""
    coin, *more = (next(column) for _ in range(1 + needed))
    if probability <= 0:
        return
    chosen = (coin.flatten() < probability).nonzero()[:, 0]
    if len(chosen) > 0:
        images.index_copy_(0, chosen, change(images[chosen], *(draw[chosen] for draw in more)))


def _relight(images: Tensor, most: float, column: Columns) -> None:
    """Change contrast and brightness in place, each by a factor of 1 ± `most`."""
    contrast, light = (1 + most * (2 * next(column) - 1) for _ in range(2))
    if most <= 0:
        return
    # Pixels become ((x - mean) * contrast + mean) * light.
    offset = images.mean(dim=(1, 2, 3), keepdim=True) * (1 - contrast) * light
    images.mul_(contrast * light).add_(offset).clamp_(0, 1)


def _move(images: Tensor, config: AugmentConfig, column: Columns) -> Tensor:
    """Random crop or shrink with the aspect ratio kept, shift and rotation; a new tensor.

    What comes in from outside the image is its border, repeated.
    """
    low, high = config.crop
    scale, x, y, turn = (next(column).flatten() for _ in range(4))
    if low == high == 1 and config.shift == 0 and config.rotate == 0:
        return images.clone()
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


def _edges(images: Tensor, strength: Tensor, coin: Tensor) -> Tensor:
    """[n, 1, h, w] in 0..1: strength of the edges, half of them thick."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]).abs().amax(dim=1, keepdim=True)
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]).abs().amax(dim=1, keepdim=True)
    edges = (across + down) * (1.5 + 2.5 * strength)
    thick = F.max_pool2d(edges, 3, stride=1, padding=1)
    return torch.where(coin < 0.5, thick, edges).clamp(0, 1)


def _outline(images: Tensor, strength: Tensor, coin: Tensor) -> Tensor:
    return images * (1 - _edges(images, strength, coin))


def _line_art(images: Tensor, strength: Tensor, coin: Tensor) -> Tensor:
    return (1 - _edges(images, strength, coin)).expand_as(images)


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotate colours about the grey axis (Rodrigues' formula), each image by its own angle."""
    angle = 2 * math.pi * turn.flatten()
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


def _fade(images: Tensor, share: Tensor) -> Tensor:
    """Half of them wholly grey, the others in part."""
    luma = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
    grey = (images * luma).sum(dim=1, keepdim=True)
    return images.lerp(grey.expand_as(images), (2 * share).clamp(max=1))


def _blur(images: Tensor, amount: Tensor) -> Tensor:
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return images.lerp(soft, amount)
