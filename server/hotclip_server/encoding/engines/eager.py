"""Plain open_clip: the reference that every other engine equals, and the fallback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.protocol import Tower

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class EagerEngine:
    """`encode_text` and `encode_image` of open_clip.

    Args:
        precision: "fp32", or "bf16" or "fp16" for autocast over fp32 weights.

    Raises:
        EngineUnfit: another precision.
    """

    name = "eager"
    padded = True

    def __init__(self, source: TowerSource, precision: str = "fp32") -> None:
        if precision not in DTYPES:
            raise EngineUnfit(f"open_clip runs in fp32, bf16 or fp16, not in {precision}")
        self.precision = precision
        self._source: TowerSource | None = source
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(source.preprocess.mean, device=source.device).view(shape)
        self._std = torch.tensor(source.preprocess.std, device=source.device).view(shape)

    def run(self, batch: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """See `Engine.run`."""
        source = self._source
        if source is None:
            raise RuntimeError("the engine is closed; this is a bug")
        autocast = torch.autocast(
            source.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"
        )
        with torch.inference_mode(), autocast:
            if source.tower is Tower.TEXT:
                ids = to_device(source.text.pad(batch), source.device)
                features = source.text.run(ids)
            else:
                images = self._normalise(to_device(np.stack(batch), source.device))
                features = source.model.encode_image(images)  # type: ignore[operator]  # nn.Module attribute
            rows: NDArray[np.float32] = features.float().cpu().numpy()
        return rows

    def close(self) -> None:
        """Frees the weights; no call may follow."""
        self._source = None

    def _normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] to float32 [n, 3, height, width]."""
        return (pixels.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array of the host as a tensor of the device."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
