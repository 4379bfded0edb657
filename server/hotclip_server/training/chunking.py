"""How many rows of a tower fit into memory at once, with all that the backward pass needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SHARE = 0.5
"""Of the free memory that activations may take: allocators leave gaps, and others want some."""
OVERHEAD = 1.5
"""Memory of a backward pass over what the forward pass keeps for it."""
PROBED = 2
"""Rows that are run to see what a row keeps."""


def chunk_rows(rows: int, image_bytes: float, text_bytes: float, free: int | None) -> int:
    """Most rows that may run together: all, if both towers' graphs fit at once.

    Args:
        rows: Of the larger tower's batch.
        image_bytes: What one row of the tower keeps for its backward pass; 0 if it isn't trained.
        text_bytes: Likewise.
        free: Bytes of the device; None where it can't be told, and then everything fits.
    """
    if free is None:
        return rows
    budget = SHARE * free / OVERHEAD
    if rows * (image_bytes + text_bytes) <= budget:
        return rows
    return max(1, min(rows, int(budget / max(image_bytes, text_bytes))))


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes that `forward` keeps for a backward pass, parameters not counted."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        # As it is, what an operator returned would hold the operator, and that in turn it.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = forward()
    del features
    return sum(kept.values())


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the device, or the host, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # What PyTorch raises for the host, c10/core/impl/alloc_cpu.cpp.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
