"""An open_clip model with what must go along with it: tokenizer and image preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

Tokenizer = Callable[[list[str]], Tensor]


class ClipModule(nn.Module):
    """What is used of open_clip's CLIP and CustomTextCLIP, which carry no types."""

    visual: nn.Module
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """`model` has `encode_image`, `encode_text` and `logit_scale` as open_clip's CLIP has.

    `tokenizer` turns n texts into [n, context] int64. `preprocess` is open_clip's description of
    size, resizing, cropping, mean and standard deviation.
    """

    model: ClipModule
    tokenizer: Tokenizer
    preprocess: PreprocessCfg

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def pixels(self, image: Image.Image) -> Tensor:
        """[3, h, w] uint8: resized, cropped and converted by open_clip's own transform."""
        plain = replace(self.preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        values: Tensor = image_transform_v2(plain, is_train=False)(image)
        return (values * 255).round().to(torch.uint8)

    def normalise(self, images: Tensor) -> Tensor:
        """[n, 3, h, w] float32 in 0..1 to what the vision tower expects, on the model's device."""
        images = images.to(self.device)
        mean, std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (self.preprocess.mean, self.preprocess.std)
        )
        return (images - mean) / std


def count_weights(model: nn.Module) -> int:
    """How many numbers it learnt."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_clip(folder: Path) -> Clip:
    """A model from open_clip's local-dir layout, on the CPU, fp32, in evaluation mode."""
    name = f"local-dir:{folder}"
    model, _, _ = open_clip.create_model_and_transforms(name)
    return clip_of(model.eval(), open_clip.get_tokenizer(name))


def clip_of(model: nn.Module, tokenizer: Tokenizer) -> Clip:
    """Take the preprocessing that open_clip's factory left on the vision tower."""
    clip_model = cast(ClipModule, model)
    described = cast(dict[str, Any], clip_model.visual.preprocess_cfg)
    return Clip(model=clip_model, tokenizer=tokenizer, preprocess=PreprocessCfg(**described))
