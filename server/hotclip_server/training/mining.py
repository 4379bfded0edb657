"""Hard negatives, found by the model that is trained.

Of each pair the images that its text is nearest to, and the texts that its image is nearest to,
though they do not belong to it. What is nearer than a share of the pair's own similarity is more
likely to belong there, unnamed, than to be wrong, and is left out: TopK-PercPos of NV-Retriever
(Moreira et al. 2024), section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hotclip_server.training.config import MiningConfig
from hotclip_server.training.losses import unit
from hotclip_server.training.relations import Numbers, Relations

SCORES = 1 << 24
"""Similarities that are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Mined:
    """`images` and `texts` are [pairs, pool] int64: numbers, hardest first; -1: no more."""

    images: Tensor
    texts: Tensor

    @property
    def pairs(self) -> int:
        """How many pairs have any."""
        return int(((self.images >= 0).any(dim=1) | (self.texts >= 0).any(dim=1)).sum())


@torch.no_grad()
def mine(
    images: Tensor, texts: Tensor, relations: Relations, config: MiningConfig
) -> Generator[None, None, Mined]:
    """Compares all with all, with a pause now and then.

    Args:
        images: [images, width] features by number, not normalised, on any device.
        texts: [texts, width], likewise.
    """
    images, texts = unit(images), unit(texts)
    of_image = torch.from_numpy(relations.images).to(images.device, torch.int64)
    of_text = torch.from_numpy(relations.texts).to(images.device, torch.int64)
    own = (images[of_image] * texts[of_text]).sum(dim=1)
    # The share counts downwards from a similarity below 0 too.
    most = own - (1 - config.ceiling) * own.abs()
    return Mined(
        images=(yield from _hardest(texts, of_text, images, most, relations.images_of, config)),
        texts=(yield from _hardest(images, of_image, texts, most, relations.texts_of, config)),
    )


def _hardest(
    queries: Tensor,
    query_of: Tensor,
    index: Tensor,
    most: Tensor,
    related: Callable[[Numbers], Numbers],
    config: MiningConfig,
) -> Generator[None, None, Tensor]:
    """[pairs, pool] int64 on the CPU."""
    pairs, items = len(query_of), len(index)
    rows = max(1, SCORES // items)
    found = torch.full((pairs, config.pool), -1)
    for start in range(0, pairs, rows):
        part = slice(start, min(start + rows, pairs))
        scores = queries[query_of[part]] @ index.T
        scores.masked_fill_(scores > most[part, None], -torch.inf)
        known = [related(np.array([pair])) for pair in range(part.start, part.stop)]
        row = np.repeat(np.arange(len(known)), [len(numbers) for numbers in known])
        at = (torch.from_numpy(row), torch.from_numpy(np.concatenate(known)).long())
        scores[at[0].to(scores.device), at[1].to(scores.device)] = -torch.inf
        values, numbers = scores.topk(min(config.pool, items), dim=1)
        found[part, : numbers.shape[1]] = numbers.masked_fill(values == -torch.inf, -1).cpu()
        yield
    return found
