"""Moments inside a step at which others may go first.

On a CPU a forward and backward pass of a large batch takes seconds, and whatever serves meanwhile
shares the cores with it. Between two layers the pass can wait as well as between two chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

_LAYERS = (nn.Linear, nn.MultiheadAttention, nn.Conv2d)
"""What takes time."""


@contextmanager
def breathing(model: nn.Module, pause: Callable[[], object] | None) -> Iterator[None]:
    """Inside, `pause` is called after each large layer of a forward pass, and before its turn in
    the backward pass. It may wait, or raise to break the pass off. None: nothing is called.

    Where a pass runs on several threads, one of them calls it at a time, and the others wait for
    that when they come to it."""
    if pause is None:
        yield
        return
    lock = threading.Lock()

    def backward(_: Tensor) -> None:
        with lock:
            pause()

    def forward(module: nn.Module, inputs: Any, output: Any) -> None:
        with lock:
            pause()
        first = output[0] if isinstance(output, tuple) else output
        if first.requires_grad:
            first.register_hook(backward)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _LAYERS):
                stack.callback(module.register_forward_hook(forward).remove)
        yield
