"""Blocks of a transformer over packed tokens, [tokens, width], each sequence after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import LayerScale, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from hotclip_server.encoding.engines.linear import QUICK_GELU, Linear, Norm, activation_of
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.sequences import Sequences
from hotclip_server.pace import Pause, never

PRODUCTS_A_LAYER = 12
"""Of a token by weights, as a multiple of the squared width: 4 in attention, 8 in a perceptron of
four times the width."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """In what a tower computes."""

    dtype: torch.dtype
    """Of products; the sum that runs through the blocks is kept in `stream`."""
    stream: torch.dtype
    packed: bool
    """See `Linear`."""
    pause: Pause = never
    """Called after each layer that was made."""

    def linear(self, weight: Tensor, bias: Tensor | None, activation: str = "") -> Linear:
        """A layer that computes so."""
        made = Linear(weight, bias, self.dtype, activation=activation, packed=self.packed)
        self.pause()
        return made

    def norm(self, module: nn.Module) -> Norm:
        """A normalisation before such a layer."""
        return Norm(module, self.dtype)


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """A block that normalises before attention and before its two layers; all fp32.

    qkv_weight: [3 width, width]; query, key and value one after the other, heads within.
    """

    heads: int
    norm_1: nn.Module
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    norm_2: nn.Module
    up_weight: Tensor
    up_bias: Tensor | None
    activation: str
    down_weight: Tensor
    down_bias: Tensor | None


def open_clip_block(block: nn.Module) -> BlockWeights:
    """The weights of open_clip's own block.

    Raises:
        EngineUnfit: it is another, or was changed.
    """
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        raise EngineUnfit(f"{type(block).__name__} is not a block known here")
    known: Any = block
    attention = known.attn
    plain = type(attention) is nn.MultiheadAttention and attention.in_proj_weight is not None
    if not plain or attention.bias_k is not None or attention.add_zero_attn:
        raise EngineUnfit("the attention is not plain")
    mlp = known.mlp
    scale_1, scale_2 = _scale(known.ls_1), _scale(known.ls_2)
    return BlockWeights(
        heads=attention.num_heads,
        norm_1=known.ln_1,
        qkv_weight=attention.in_proj_weight,
        qkv_bias=attention.in_proj_bias,
        out_weight=_scaled(attention.out_proj.weight, scale_1),
        out_bias=_scaled(attention.out_proj.bias, scale_1),
        norm_2=known.ln_2,
        up_weight=mlp.c_fc.weight,
        up_bias=mlp.c_fc.bias,
        activation=activation_of(mlp.gelu),
        down_weight=_scaled(mlp.c_proj.weight, scale_2),
        down_bias=_scaled(mlp.c_proj.bias, scale_2),
    )


def layers(
    up_weight: Tensor,
    up_bias: Tensor | None,
    activation: str,
    down_weight: Tensor,
    down_bias: Tensor | None,
    compute: Compute,
) -> tuple[Linear, Linear]:
    """The two layers of a block. x sigmoid(a x) is silu(a x) / a: one fused activation less
    to know."""
    if activation == "quick_gelu":
        up_weight = up_weight * QUICK_GELU
        up_bias = None if up_bias is None else up_bias * QUICK_GELU
        down_weight = down_weight / QUICK_GELU
        activation = "swish"
    up = compute.linear(up_weight, up_bias, activation)
    return up, compute.linear(down_weight, down_bias)


class Block:
    """Every token in, every token out."""

    def __init__(self, weights: BlockWeights, compute: Compute, *, causal: bool) -> None:
        self._heads, self._causal = weights.heads, causal
        self._norm_1 = compute.norm(weights.norm_1)
        self._qkv = compute.linear(weights.qkv_weight, weights.qkv_bias)
        self._out = compute.linear(weights.out_weight, weights.out_bias)
        self._norm_2 = compute.norm(weights.norm_2)
        self._up, self._down = layers(
            weights.up_weight,
            weights.up_bias,
            weights.activation,
            weights.down_weight,
            weights.down_bias,
            compute,
        )

    def __call__(self, x: Tensor, sequences: Sequences) -> Tensor:
        """[tokens, width] to the same."""
        attended = attention(
            self._qkv(self._norm_1(x)), self._heads, sequences, causal=self._causal
        )
        x = self._out.plus(attended, x)
        return self._down.plus(self._up(self._norm_2(x)), x)


def attention(qkv: Tensor, heads: int, sequences: Sequences, *, causal: bool) -> Tensor:
    """[tokens, 3 width] to [tokens, width]: each token looks at those of its sequence.

    A causal one needs no mask for padding, which comes after every token that counts.
    """
    padded = sequences.pad(qkv)  # [n, length, 3 width]
    n, length, width = padded.shape
    query, key, value = padded.view(n, length, 3, heads, width // (3 * heads)).unbind(2)
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=None if causal else sequences.mask,
        is_causal=causal,
    )
    return sequences.pack(attended.transpose(1, 2).reshape(n, length, width // 3))


class OneQuery:
    """Attention of one query a sequence, without making keys and values.

    A score is q·(W_k x + b_k) = (W_kᵀ q)·x + a constant, which the softmax drops; and the
    weights sum to 1, so the sum of p (W_v x + b_v) is W_v (the sum of p x) + b_v. With one
    query this multiplies `heads` rows a sequence instead of every token.

    Args:
        key_weight, value_weight: fp32 [width, width of x].
        value_bias: fp32 [width].
    """

    def __init__(
        self,
        heads: int,
        key_weight: Tensor,
        value_weight: Tensor,
        value_bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        def split(weight: Tensor) -> Tensor:
            return weight.detach().to(dtype).view(heads, -1, weight.shape[1])

        self._heads = heads
        self._key, self._value = split(key_weight), split(value_weight)  # [heads, size, width]
        self._value_bias = None if value_bias is None else value_bias.detach().to(dtype)
        self._scale = self._key.shape[1] ** -0.5

    def __call__(self, query: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """
        Args:
            query: [n, width].
            x: What keys and values are made of, [n, length, width of x].
            mask: Additive [n, 1, length].

        Returns:
            [n, width].
        """
        n = len(query)
        split = (query * self._scale).view(n, self._heads, -1).transpose(0, 1)  # [heads, n, size]
        over_x = torch.bmm(split, self._key).transpose(0, 1)  # [n, heads, width of x]
        exact = x.float()  # little work, in shapes of which there are many
        scores = torch.bmm(over_x.float(), exact.transpose(1, 2))  # [n, heads, length]
        if mask is not None:
            scores = scores + mask
        context = torch.bmm(scores.softmax(-1), exact).to(x.dtype)  # [n, heads, width of x]
        values = torch.bmm(context.transpose(0, 1), self._value.transpose(1, 2))
        pooled = values.transpose(0, 1).reshape(n, -1)
        return pooled if self._value_bias is None else pooled + self._value_bias


class LastBlock:
    """The last block of a tower that looks at one token a sequence: computes no other."""

    def __init__(self, weights: BlockWeights, compute: Compute) -> None:
        query, key, value = weights.qkv_weight.chunk(3)
        bias = weights.qkv_bias
        query_bias, _, value_bias = (None,) * 3 if bias is None else bias.chunk(3)
        self._norm_1 = compute.norm(weights.norm_1)
        self._query = compute.linear(query, query_bias)
        self._attention = OneQuery(weights.heads, key, value, value_bias, compute.dtype)
        self._out = compute.linear(weights.out_weight, weights.out_bias)
        self._norm_2 = compute.norm(weights.norm_2)
        self._up, self._down = layers(
            weights.up_weight,
            weights.up_bias,
            weights.activation,
            weights.down_weight,
            weights.down_bias,
            compute,
        )

    def __call__(self, x: Tensor, sequences: Sequences, rows: Tensor) -> Tensor:
        """[tokens, width] to [n, width].

        Args:
            rows: int64 [n], which token of each sequence.
        """
        normal = self._norm_1(x)
        query = self._query(normal.index_select(0, rows))
        attended = self._attention(query, sequences.pad(normal), sequences.additive)
        x = self._out.plus(attended, x.index_select(0, rows))
        return self._down.plus(self._up(self._norm_2(x)), x)


def _scale(module: nn.Module) -> Tensor | None:
    if type(module) is nn.Identity:
        return None
    if type(module) is LayerScale:
        return module.get_parameter("gamma")
    raise EngineUnfit(f"{type(module).__name__} is not a scale known here")


def _scaled(parameter: Tensor, scale: Tensor | None) -> Tensor:
    """A layer's weight [out, in] or bias [out], with the scale of its result folded in."""
    if scale is None:
        return parameter
    return parameter * (scale[:, None] if parameter.ndim == 2 else scale)
