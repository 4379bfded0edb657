"""Where runs train and on which models: what a configuration asks of both."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hotclip_server.encoding.engines.linear import multiplies_in
from hotclip_server.errors import DataLoss, FieldViolation
from hotclip_server.models.manifest import WEIGHTS_FILE
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.selection import LOGIT_PARAMETERS, model_violations

_DEVICE = re.compile(r"cpu|cuda(?::(\d+))?")


class Ground:
    """Implements `TrainingGround`.

    Args:
        device: Where runs train that ask for none, e.g. "cuda:0".
        folder: Gives the folder of a stored version.
    """

    def __init__(self, device: str, folder: Callable[[str], Path]) -> None:
        self._device = device
        self._folder = folder

    def problems(
        self, config: TrainConfig, version: str, device: str, pairs: int
    ) -> list[FieldViolation]:
        """What cannot be done; reads the header of the version's weights."""
        missing = device_problem(device)
        found = [FieldViolation("device", missing)] if missing else []
        where = device or self._device
        if config.precision == "bf16" and where == "cpu" and not multiplies_in(torch.bfloat16):
            found.append(FieldViolation("precision", "this processor does not multiply in bf16"))
        shapes = weight_shapes(self._folder(version) / WEIGHTS_FILE)
        resolved = config.resolved(
            pairs=pairs,
            weights=sum(map(math.prod, shapes.values())),
            logit_bias="logit_bias" in shapes,
            device=where,
        )
        return [
            *found,
            *(FieldViolation(v.field, v.reason) for v in model_violations(shapes, resolved)),
        ]


def weight_shapes(file: Path) -> Mapping[str, Sequence[int]]:
    """Shapes of the floating-point weights in a safetensors file by name; no weight is read.

    Raises:
        DataLoss: it is damaged or gone.
    """
    try:
        with safe_open(file, "pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            return {
                name: tuple(part.get_shape())
                for name, part in slices.items()
                if part.get_dtype() in ("F32", "F16", "BF16") or name in LOGIT_PARAMETERS
            }
    except (OSError, SafetensorError) as error:
        raise DataLoss(f"{file.parent.name}: {file.name} can't be read: {error}") from error


def device_problem(device: str) -> str:
    """Why nothing can be trained on a device that was asked for; empty if it can or none was."""
    if not device:
        return ""
    match = _DEVICE.fullmatch(device)
    if match is None:
        return f"must be cpu, cuda or cuda:<number>, got {device!r}"
    count = torch.cuda.device_count()
    if device != "cpu" and int(match[1] or 0) >= count:
        return f"{device} is not there: this machine has {count} CUDA devices"
    return ""
