"""Towers of timm and of Hugging Face whose structure is not known: their own code, over linear
layers and convolutions that are cast and packed once."""

from __future__ import annotations

import copy
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from torch import Tensor, nn
from torch.nn import functional as F

from hotclip_server.encoding.engines.blocks import Compute
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.sequences import Sequences
from hotclip_server.encoding.engines.source import TowerSource


class ConvertedImages:
    """Any `TimmModel`, channels last."""

    def __init__(self, source: TowerSource, compute: Compute) -> None:
        visual: Any = source.model.visual
        if type(visual) is not TimmModel:
            raise EngineUnfit("not a model of timm")
        shape = (1, 3, 1, 1)
        self._mean = 255 * torch.tensor(source.preprocess.mean, device=source.device).view(shape)
        self._std = 255 * torch.tensor(source.preprocess.std, device=source.device).view(shape)
        self._visual = converted(visual, compute)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] to fp32 [n, dim]."""
        # A permuted view of pixels lies channels last, and so does all that is made of it.
        features: Tensor = self._visual((pixels.permute(0, 3, 1, 2) - self._mean) / self._std)
        return features.float()


class ConvertedText:
    """Any `HFTextEncoder`, padded as for plain open_clip."""

    def __init__(self, source: TowerSource, compute: Compute) -> None:
        text: Any = getattr(source.model, "text", None)
        if type(text) is not HFTextEncoder or source.text.masked_id is None:
            raise EngineUnfit("not a text tower of Hugging Face whose padding is masked")
        self._pad_id = source.text.masked_id
        self._text = converted(text, compute)

    def __call__(self, ids: Tensor, places: Tensor, sequences: Sequences) -> Tensor:
        """Packed ids and their places, int64 [rows], to fp32 [n, dim]."""
        tokens = len(sequences.owner)
        longest = int(places[:tokens].max()) + 1
        padded = ids.new_full((sequences.n, longest), self._pad_id)
        padded[sequences.owner, places[:tokens]] = ids[:tokens]
        features: Tensor = self._text(padded)
        return features.float()


def converted(module: nn.Module, compute: Compute) -> nn.Module:
    """A copy that shares every tensor with `module` but those of its heavy layers."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    made = copy.deepcopy(module, shared)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, _Linear(child, compute))
            elif type(child) is nn.Conv2d and child.padding_mode == "zeros":
                setattr(parent, name, _Convolution(child, compute))
    return made.eval()


class _Linear(nn.Module):
    def __init__(self, layer: nn.Linear, compute: Compute) -> None:
        super().__init__()
        # Some code looks at a layer's weight instead of calling it.
        self.weight, self.bias = layer.weight, layer.bias
        self._packed = compute.linear(layer.weight, layer.bias)
        self._dtype = compute.dtype

    def forward(self, x: Tensor) -> Tensor:
        return self._packed(x.to(self._dtype)).to(x.dtype)


class _Convolution(nn.Module):
    def __init__(self, layer: nn.Conv2d, compute: Compute) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self._cast = layer.weight.detach().to(compute.dtype, memory_format=torch.channels_last)
        self._cast_bias = None if layer.bias is None else layer.bias.detach().to(compute.dtype)
        self._options: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x.to(self._cast.dtype), self._cast, self._cast_bias, *self._options)
        return y.to(x.dtype)
