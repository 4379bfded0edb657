"""Layers of the torch engine: weights in one precision, packed once for this processor."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import LayerNorm, LayerNormFp32, QuickGELU
from torch import Tensor, nn
from torch.nn import functional as F

from hotclip_server.encoding.engines.protocol import EngineUnfit

QUICK_GELU = 1.702
"""QuickGELU(x) = x sigmoid(1.702 x) (open_clip.transformer.QuickGELU)."""
TIMM_NORM = "timm.layers.norm.LayerNorm"
"""By name, as what follows: importing timm takes half a second where no model needs it."""
TIMM_ACTIVATIONS = {
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
}


class Linear:
    """x Wᵀ + b, with an activation or a residual in the same call where the library can.

    Args:
        weight: fp32 [out, in].
        bias: fp32 [out].
        dtype: In which it multiplies.
        activation: "", "relu", "gelu" or "gelu_tanh".
        packed: Reorder the weight for oneDNN once instead of at each call.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        *,
        activation: str = "",
        packed: bool = False,
    ) -> None:
        self.activation = activation
        self.packed = packed
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        if packed:
            # Added in fp32, whatever is multiplied.
            self.bias = None if bias is None else bias.detach()
            self.weight = torch.ops.mkldnn._reorder_linear_weight(
                self.weight.contiguous(), PACKED_ROWS
            )

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        if self.packed:
            name, how = _POINTWISE[self.activation]
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], how)
            return y
        return activate(F.linear(x, self.weight, self.bias), self.activation)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """[..., in] to [..., out], added to `residual`; there must be no activation."""
        if self.packed and residual.dtype == x.dtype == torch.float32:
            y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self.weight, self.bias, "add"
            )
            return y
        return residual + self(x)


PACKED_ROWS = 256
"""Rows of x that the packing is made for; others run too."""
_POINTWISE = {
    "": ("none", ""),
    "relu": ("relu", ""),
    "swish": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
}


class Norm:
    """Layer normalisation: statistics and affine part in fp32, result in `dtype`."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        known_here = type(module) in (nn.LayerNorm, LayerNorm, LayerNormFp32)
        if not known_here and _name_of(module) != TIMM_NORM:
            raise EngineUnfit(f"{type(module).__name__} is not a layer normalisation known here")
        known: Any = module
        self._shape = tuple(known.normalized_shape)
        self._weight, self._bias, self._eps = known.weight, known.bias, known.eps
        self._dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        """[..., width]."""
        return F.layer_norm(x, self._shape, self._weight, self._bias, self._eps).to(self._dtype)


def activate(x: Tensor, activation: str) -> Tensor:
    """One of the activations that `Linear` takes."""
    match activation:
        case "":
            return x
        case "relu":
            return F.relu(x)
        case "swish":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case _:
            return F.gelu(x, approximate="tanh")


def activation_of(module: nn.Module) -> str:
    """The name of an activation module; "quick_gelu" besides those of `Linear`.

    Raises:
        EngineUnfit: any other.
    """
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if type(module) is QuickGELU:
        return "quick_gelu"
    if (known := TIMM_ACTIVATIONS.get(_name_of(module))) is not None:
        return known
    raise EngineUnfit(f"{type(module).__name__} is not an activation known here")


def _name_of(module: nn.Module) -> str:
    """Of its class, with the module that defines it."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def packing_helps(device: torch.device) -> bool:
    """Whether `Linear` may be packed: oneDNN's linear operator is there."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own


def multiplies_in(dtype: torch.dtype) -> bool:
    """Whether oneDNN has products in a type on this processor."""
    match dtype:
        case torch.bfloat16:
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        case torch.float16:
            return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
        case _:
            return True
