"""Token ids of one text, fitted into the context of a text tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotclip_server.errors import InvalidArgument


def too_long(tokens: int, context_length: int) -> InvalidArgument:
    """The answer to `Truncate.NONE` where something would have to go."""
    return InvalidArgument.field(
        "text",
        f"has {tokens} tokens, the model takes {context_length}",
        reason="TEXT_TOO_LONG",
    )


def padded(
    ids: Sequence[int], context_length: int, pad_id: int = 0, *, left: bool = False
) -> NDArray[np.int64]:
    """int64 (context_length,) of at most that many ids."""
    row = np.full(context_length, pad_id, np.int64)
    if left:
        row[context_length - len(ids) :] = ids
    else:
        row[: len(ids)] = ids
    return row


def stacked(
    ids: Callable[[str], NDArray[np.int64]], texts: Sequence[str], context_length: int
) -> Tensor:
    """int64 [n, context_length] of n texts."""
    if not texts:
        return torch.zeros(0, context_length, dtype=torch.int64)
    return torch.from_numpy(np.stack([ids(text) for text in texts]))
