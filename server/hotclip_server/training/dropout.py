"""Random numbers by row of the batch: a sample drops the same units however the batch is cut.

Dropout draws once for all rows that run together, so one batch and its chunks would drop
different units, and the two forward passes of a gradient cache would too. Here every row gets
its numbers from a seed of its own block of rows, wherever the block runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 8
"""Rows that share a seed: few enough that a chunk draws little that it does not need."""
_RATES = ("p", "prob", "drop_prob", "dropout", "dropout_p", "dropout_prob", "attention_dropout")
_ATEN = torch.ops.aten


def draws_in_training(model: nn.Module) -> bool:
    """Whether a module of `model` has a rate of dropout above 0."""
    rates = (getattr(module, name, None) for module in model.modules() for name in _RATES)
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


@contextmanager
def rows_drawn(seed: int, first: int, *, active: bool) -> Iterator[None]:
    """Inside, operations draw for the rows from `first` on of a batch with this seed.

    Attention runs without its fused kernels, whose dropout can't be given numbers. What draws for
    something other than rows gets numbers of `seed` alone.
    """
    if not active:
        yield
        return
    with sdpa_kernel([SDPBackend.MATH]), RowNumbers(seed, first):
        yield


class RowNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Answers operations that draw; the first dimension is taken as rows of the batch."""

    def __init__(self, seed: int, first: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._seed = seed
        self._first = first
        self._calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        told = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **told)
        self._calls += 1
        if func is _ATEN.bernoulli_.float:
            target, rate = args[0], args[1] if len(args) > 1 else 0.5
            return target.copy_(self._rows(torch.rand, target.shape, target.device) < rate)
        if func is _ATEN.native_dropout.default:
            given, rate, _ = args
            kept = self._rows(torch.rand, given.shape, given.device) >= rate
            return given * kept / (1 - rate), kept
        if func in (_ATEN.rand.default, _ATEN.randn.default):
            draw = torch.rand if func is _ATEN.rand.default else torch.randn
            drawn = self._rows(draw, torch.Size(args[0]), told.get("device"))
            return drawn.to(told.get("dtype") or torch.get_default_dtype())
        if func is _ATEN.rand_like.default:
            drawn = self._rows(torch.rand, args[0].shape, args[0].device)
            return drawn.to(told.get("dtype") or args[0].dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(block_seed(self._seed, self._calls, -1))
            return func(*args, **told)

    def _rows(
        self, draw: Callable[..., Tensor], shape: torch.Size, device: torch.device | None
    ) -> Tensor:
        """float32 of `shape`; row i is that of row `first` + i of the batch."""
        device = device or torch.device("cpu")
        generator = torch.Generator(device)
        begin, end = self._first // BLOCK, -(-(self._first + shape[0]) // BLOCK)
        blocks = []
        for block in range(begin, end):
            generator.manual_seed(block_seed(self._seed, self._calls, block))
            blocks.append(draw((BLOCK, *shape[1:]), generator=generator, device=device))
        start = self._first - begin * BLOCK
        return torch.cat(blocks)[start : start + shape[0]]


def block_seed(seed: int, call: int, block: int) -> int:
    """Seed of the numbers of one block of rows in one operation, below 2**63."""
    state = np.random.SeedSequence([seed, call, block + 1]).generate_state(1, np.uint64)
    return int(state[0] >> 1)
