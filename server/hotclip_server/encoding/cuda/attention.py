"""Self-attention of open_clip's blocks through SDPA, with `is_causal` instead of a mask.

`nn.MultiheadAttention` hands the mask on, and with one neither the flash nor the cuDNN kernel is
taken (docs.pytorch.org: scaled_dot_product_attention); it also copies between [length, n] and
[n, length].
"""

from __future__ import annotations

from typing import Any

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Called and with parameters named as the `nn.MultiheadAttention` that it takes them from.

    Args:
        causal: Whether the mask that it is given is the causal one, which it then ignores.
    """

    def __init__(self, attention: Any, *, causal: bool) -> None:
        super().__init__()
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.num_heads: int = attention.num_heads
        self.causal = causal

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """[n, length, width] to the same; `key` and `value` are `query`.

        Args:
            attn_mask: Additive, [length, length] or [n * heads, length, length].
        """
        n, length, width = query.shape
        heads = self.num_heads
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(n, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind()
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.view(n, heads, length, length)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if self.causal else attn_mask, is_causal=self.causal
        )
        return self.out_proj(attended.transpose(1, 2).reshape(n, length, width)), None


def use_sdpa(module: nn.Module, *, causal: bool) -> None:
    """Replaces the attention of every block below `module` that is plain self-attention."""
    for block in module.modules():
        if type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv"):
            attention: Any = block.attn
            if _is_plain(attention):
                block.attn = SelfAttention(attention, causal=causal)


def _is_plain(attention: Any) -> bool:
    return (
        type(attention) is nn.MultiheadAttention
        and attention.batch_first
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )
