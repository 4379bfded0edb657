"""Weights of an open_clip model as a safetensors file, checked before they are used."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hotclip_server.errors import DataLoss, FailedPrecondition
from hotclip_server.pace import PIECE_BYTES, Pause, never

_OPTIONAL = frozenset({"text.transformer.embeddings.position_ids"})
"""A buffer that older files of Hugging Face towers have; open_clip drops it too."""
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
"""How safetensors tells of an error of the system, which it raises as its own."""


def master_weights(model: nn.Module, pause: Pause = never) -> dict[str, Tensor]:
    """The model's state on the CPU: fp32, contiguous, integers as they are.

    Args:
        pause: Called between tensors.

    Raises:
        FailedPrecondition: a weight is not finite; reason VERSION_UNFIT.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            if not _is_finite(tensor):
                raise _unfit(f"{name} has values that are not finite")
            tensor = tensor.to(torch.float32)
        state[name] = tensor.detach().to("cpu").contiguous()
        pause()
    return state


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file; not atomic and not synced, that is for the folder it is in.

    Raises:
        OSError: it can't be written, e.g. because the disk is full.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def fp32_bytes(path: Path) -> int:
    """What the tensors of a file take in fp32, which is twice the file if it is of half precision;
    reads the header alone. Of what is no safetensors file the size."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            shapes: list[list[int]] = [file.get_slice(n).get_shape() for n in file.keys()]  # noqa: SIM118 - no dict
    except SafetensorError:
        return path.stat().st_size
    return 4 * sum(math.prod(shape) for shape in shapes)


def check_weights(model: nn.Module, path: Path) -> None:
    """Compares names, shapes and kinds of numbers in a file's header with the model; reads no
    tensor.

    Raises:
        FailedPrecondition: they are another model's; reason VERSION_UNFIT.
        DataLoss: not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            _check_header(file, model.state_dict(), ignored=_OPTIONAL)
    except SafetensorError as error:
        raise _not_safetensors(path, error) from error


def read_weights(model: nn.Module, path: Path, pause: Pause = never) -> None:
    """Copies the weights of a file into `model`, some rows of a tensor at a time.

    Names and shapes are compared with the model before the first tensor is read.

    Args:
        pause: Called between pieces of about PIECE_BYTES.

    Raises:
        FailedPrecondition: they are another model's, or not finite; reason VERSION_UNFIT.
        DataLoss: not a safetensors file.
    """
    wanted = model.state_dict()
    try:
        with safe_open(path, framework="pt", device="cpu") as file, torch.no_grad():
            _check_header(file, wanted)
            for name, target in wanted.items():
                for piece, place in _pieces(file, name, target):
                    if piece.is_floating_point() and not _is_finite(piece):
                        raise _unfit(f"{name} has values that are not finite")
                    _copy(piece, place)
                    pause()
    except SafetensorError as error:
        raise _not_safetensors(path, error) from error


def _pieces(file: Any, name: str, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A tensor of a file in pieces of whole rows, each with where it belongs in `target`."""
    if target.nbytes <= PIECE_BYTES:
        yield file.get_tensor(name), target
        return
    rows = max(1, PIECE_BYTES * len(target) // target.nbytes)
    for first in range(0, len(target), rows):
        part = slice(first, min(first + rows, len(target)))
        yield file.get_slice(name)[part], target[part]


def _check_header(
    file: Any, wanted: Mapping[str, Tensor], ignored: frozenset[str] = frozenset()
) -> None:
    names = set(file.keys()) - (ignored - set(wanted))
    if names != set(wanted):
        missing, extra = sorted(set(wanted) - names), sorted(names - set(wanted))
        raise _unfit(f"tensors missing: {missing[:5]}, unknown: {extra[:5]}")
    for name, target in wanted.items():
        told = file.get_slice(name)
        if told.get_shape() != list(target.shape):
            raise _unfit(f"{name} has shape {told.get_shape()}, the model {list(target.shape)}")
        floats = told.get_dtype().startswith(("F", "BF"))
        if floats != target.is_floating_point():
            raise _unfit(f"{name} is {told.get_dtype()}, the model's {target.dtype}")


def _not_safetensors(path: Path, error: SafetensorError) -> DataLoss:
    return DataLoss(f"{path.name} is not a whole safetensors file: {error}")


def _copy(piece: Tensor, place: Tensor) -> None:
    """By numpy where no number changes: torch would take every core for a moment."""
    if piece.dtype == place.dtype and place.device.type == "cpu":
        np.copyto(place.numpy(), piece.numpy())
    else:
        place.copy_(piece)


def _is_finite(tensor: Tensor) -> bool:
    """By the extremes, which a NaN passes through: three times as fast as asking each value."""
    if not tensor.numel():
        return True
    if tensor.dtype == torch.float32 and tensor.device.type == "cpu":
        values = tensor.detach().numpy()
        with np.errstate(invalid="ignore"):
            return bool(np.isfinite(values.min()) and np.isfinite(values.max()))
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _unfit(problem: str) -> FailedPrecondition:
    return FailedPrecondition(f"the weights do not fit: {problem}", reason="VERSION_UNFIT")
