"""The end of a step in pieces: clipping, optimizer and average, with moments for others between.

Of a ViT-B-32 they move gigabytes through memory, as long as many batches of requests take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

PIECE_BYTES = 16 << 20
"""Of parameters between two pauses."""


class Pauses:
    """Calls a pause while a step is half done: an error waits until the step is whole.

    Args:
        pause: May wait, or raise to end the run; None: nobody needs to go first, and nothing is
            cut into pieces.
    """

    def __init__(self, pause: Callable[[], object] | None) -> None:
        self.wanted = pause is not None
        self._pause = pause
        self._error: Exception | None = None

    def __call__(self) -> None:
        """Waits, unless a wait was refused before."""
        if self._pause is None or self._error is not None:
            return
        try:
            self._pause()
        except Exception as error:  # noqa: BLE001 - raised by `end`
            self._error = error

    def end(self) -> None:
        """The step is whole; raises what a pause raised."""
        if self._error is not None:
            raise self._error

    def pieces(self, parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
        """The parameters, some at a time, with a pause after each lot."""
        piece: list[nn.Parameter] = []
        size = 0
        for parameter in parameters:
            piece.append(parameter)
            size += parameter.nbytes
            if size >= PIECE_BYTES and self.wanted:
                yield piece
                self()
                piece, size = [], 0
        if piece:
            yield piece
            self()


def clip_gradients(parameters: Sequence[nn.Parameter], most: float, pauses: Pauses) -> Tensor:
    """As `torch.nn.utils.clip_grad_norm_`, to the bit: the Euclidean norm of all gradients, which
    are scaled down to `most` if it is more.

    Returns:
        The norm before, a scalar on the device.
    """
    moved = _moved(parameters)
    if not (pauses.wanted and moved):
        return nn.utils.clip_grad_norm_(moved, most)
    norms: list[Tensor] = []
    for piece in pauses.pieces(moved):
        norms += [torch.linalg.vector_norm(p.grad) for p in piece if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    for piece in pauses.pieces(moved):
        nn.utils.clip_grads_with_norm_(piece, most, norm)
    return norm


def step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], pauses: Pauses
) -> None:
    """`optimizer.step()`, and the gradients are gone: some parameters after the others, each of
    which the optimizer moves by its own gradient and state alone."""
    moved = _moved(parameters)
    gradients = [parameter.grad for parameter in moved]
    for parameter in moved:
        parameter.grad = None
    at = 0
    for piece in pauses.pieces(moved):
        for parameter in piece:
            parameter.grad, gradients[at] = gradients[at], None
            at += 1
        optimizer.step()
        for parameter in piece:
            parameter.grad = None


def _moved(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.grad is not None]
