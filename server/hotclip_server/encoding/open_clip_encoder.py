"""Both towers of an open_clip model, eager: the reference that every other engine equals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from hotclip_server.encoding.image import ImageLimits, ImagePreparer
from hotclip_server.encoding.protocol import EncoderSpec, Prepared, Tower, Truncate
from hotclip_server.encoding.text_tower import TextTower
from hotclip_server.encoding.tokenizer import TextTokenizer
from hotclip_server.errors import InvalidArgument

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class OpenClipEncoder:
    """Implements `Encoder`.

    Args:
        model: In fp32; moved to `device` and put into evaluation mode.
        precision: "fp32", or "bf16" or "fp16" for autocast over fp32 weights.

    Raises:
        InvalidArgument: no such device or precision.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TextTokenizer,
        spec: EncoderSpec,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        limits: ImageLimits | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise InvalidArgument.field("precision", f"{precision!r} is not one of fp32/bf16/fp16")
        try:
            self.device = torch.device(device)
            self.model = model.to(self.device).eval().requires_grad_(False)
        except (RuntimeError, AssertionError) as error:
            raise InvalidArgument.field("device", f"{device!r} cannot be used: {error}") from error
        if self.device.type == "cuda":
            # fp32 means fp32: cuDNN would else round what convolutions multiply to 10 bits.
            torch.backends.cudnn.allow_tf32 = False
        self.tokenizer = tokenizer
        self.precision = precision
        self._spec = spec
        visual: Any = model.visual
        described: dict[str, Any] = visual.preprocess_cfg
        self.preprocess = PreprocessCfg(**described)
        self._images = ImagePreparer(described, limits or ImageLimits())
        self._text = TextTower(model, tokenizer.context_length)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(self.preprocess.mean, device=self.device).view(shape)
        self._std = torch.tensor(self.preprocess.std, device=self.device).view(shape)
        scale: Any = model.logit_scale
        self._logit_scale = float(scale.detach().exp().mean())

    @property
    def spec(self) -> EncoderSpec:
        """What it is."""
        return self._spec

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine in the softmax of `Rank`."""
        return self._logit_scale

    def prepare_text(self, text: str, truncate: Truncate = Truncate.END) -> Prepared:
        """int64 (length,), without the padding that the tower does not look at."""
        ids = self._text.shorten(self.tokenizer.ids(text, truncate))
        return Prepared(Tower.TEXT, ids)

    def prepare_image(self, data: bytes) -> Prepared:
        """uint8 RGB (height, width, 3); see `ImagePreparer.prepare` for the errors."""
        return Prepared(Tower.VISION, self._images.prepare(data))

    def prepare_tensor(self, data: bytes, height: int, width: int) -> Prepared:
        """uint8 RGB (height, width, 3); see `ImagePreparer.from_tensor` for the errors."""
        return Prepared(Tower.VISION, self._images.from_tensor(data, height, width))

    def encode(self, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        """Features, float32 (len(batch), dim), not normalised; blocks."""
        if not batch:
            return np.empty((0, self._spec.dim), np.float32)
        arrays = [item.array for item in batch]
        autocast = torch.autocast(
            self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"
        )
        with torch.inference_mode(), autocast:
            if tower is Tower.TEXT:
                features = self._text.run(self._to_device(self._text.pad(arrays)))
            else:
                features = self.model.encode_image(self._normalise(np.stack(arrays)))  # type: ignore[operator]  # nn.Module attribute
        raw: NDArray[np.float32] = features.float().cpu().numpy()
        return raw

    def close(self) -> None:
        """Frees the weights; no call may follow."""
        self.model = nn.Module()
        self._text = None  # type: ignore[assignment]  # no call may follow

    def _normalise(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 (n, height, width, 3) to float32 [n, 3, height, width] on the device."""
        images = self._to_device(pixels).permute(0, 3, 1, 2)
        return (images.float() / 255 - self._mean) / self._std

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor
