"""What the blocks of a tower make of an item, one vector each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from hotclip_server.training.selection import is_block


class Layers:
    """The blocks of one tower, in the order of the model's modules.

    Args:
        tower: Whether a name is of this tower.
    """

    def __init__(self, model: nn.Module, tower: Callable[[str], bool]) -> None:
        named = {
            name: module for name, module in model.named_modules() if tower(name) and is_block(name)
        }
        # A stage whose parts are blocks too is none itself.
        self._blocks = [
            module
            for name, module in named.items()
            if not any(other.startswith(f"{name}.") for other in named)
        ]

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """Inside, what each block gives in a pass is added to the list."""
        given: list[Tensor] = []

        def note(_: nn.Module, inputs: Any, output: Any) -> None:
            given.append(output[0] if isinstance(output, tuple) else output)

        with ExitStack() as stack:
            for block in self._blocks:
                stack.callback(block.register_forward_hook(note).remove)
            yield given


def row_vectors(given: Tensor, used: Tensor | None = None) -> Tensor:
    """[n, width]: the mean over places of what a block gave.

    `given` is [n, places, width] of a transformer, [n, width, height, width of the map] of
    convolutions. `used` is [n, places] bool: the places that count; None: all.
    """
    if given.ndim == 4:
        return given.mean(dim=(2, 3))
    if given.ndim == 3 and used is not None:
        weights = used.to(given.dtype)
        total = (given * weights[:, :, None]).sum(dim=1)
        return total / weights.sum(dim=1, keepdim=True).clamp_min(1)
    return given.mean(dim=1) if given.ndim == 3 else given
