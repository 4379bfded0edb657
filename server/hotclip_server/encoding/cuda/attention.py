"""open_clip's blocks through SDPA, with `is_causal` instead of a mask, and no token too many.

`nn.MultiheadAttention` hands the mask on, and with one neither the flash nor the cuDNN kernel is
taken (docs.pytorch.org: scaled_dot_product_attention); it also copies between [length, n] and
[n, length].
"""

from __future__ import annotations

from typing import Any

import torch
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

    def of_query(self, query: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of one token a sequence.

        Args:
            query: [n, 1, width].
            x: All tokens, [n, length, width].
            mask: bool [n, 1, 1, length], True where it looks; None: everywhere.

        Returns:
            [n, 1, width].
        """
        n, length, width = x.shape
        heads, size = self.num_heads, width // self.num_heads
        own_bias = other_bias = None
        if self.in_proj_bias is not None:
            own_bias, other_bias = self.in_proj_bias[:width], self.in_proj_bias[width:]
        q = F.linear(query, self.in_proj_weight[:width], own_bias)
        kv = F.linear(x, self.in_proj_weight[width:], other_bias)
        k, v = kv.view(n, length, 2, heads, size).permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(
            q.view(n, 1, heads, size).transpose(1, 2), k, v, attn_mask=mask
        )
        joined: Tensor = self.out_proj(attended.transpose(1, 2).reshape(n, 1, width))
        return joined


class LastBlock(nn.Module):
    """A tower's last block where only one token of each sequence is looked at: computes no other.

    Args:
        block: With `SelfAttention`; its parameters keep their names.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ls_1 = block.ln_1, block.attn, block.ls_1
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """[n, length, width] to [n, 1, width].

        Args:
            attn_mask: As open_clip hands it to every block; there must be none.
            places: int64 [n], which token of each sequence; it looks at those before it and at
                itself. None: the first, which looks at all.
        """
        if attn_mask is not None:
            raise RuntimeError("a mask where none is looked at; this is a bug")
        normal, mask = self.ln_1(x), None
        if places is None:
            x, query = x[:, :1], normal[:, :1]
        else:
            at = places[:, None, None].expand(-1, 1, x.shape[2])
            mask = torch.arange(x.shape[1], device=x.device) <= places[:, None]
            mask = mask[:, None, None]  # [n, 1, 1, length]
            x, query = x.gather(1, at), normal.gather(1, at)
        x = x + self.ls_1(self.attn.of_query(query, normal, mask))
        after: Tensor = x + self.ls_2(self.mlp(self.ln_2(x)))
        return after


def use_last_block(transformer: Any) -> bool:
    """Puts `LastBlock` in place of the last block, if `use_sdpa` replaced the attention of all.

    Nothing happens to a single block, which open_clip asks for the precision of its weights.

    Returns:
        Whether it did.
    """
    blocks = transformer.resblocks
    fits = len(blocks) > 1 and all(
        type(block) is ResidualAttentionBlock and type(block.attn) is SelfAttention
        for block in blocks
    )
    if fits:
        blocks[-1] = LastBlock(blocks[-1])
    return fits


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
