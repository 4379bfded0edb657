"""The attention at the end of a ResNet, with the one query whose answer is kept.

open_clip lets every place of the image ask and throws away all answers but the first. Of the four
products of this layer two are then as many times smaller as there are places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn
from torch.nn import functional


@contextmanager
def one_query(model: nn.Module) -> Iterator[int]:
    """Inside, each `AttentionPool2d` computes what it returns alone: the same features and
    gradients within rounding. Yields how many there are."""
    pools = [module for module in model.modules() if type(module) is AttentionPool2d]
    for pool in pools:
        pool.forward = partial(_first, pool)
    try:
        yield len(pools)
    finally:
        for pool in pools:
            del pool.forward


def _first(pool: AttentionPool2d, images: Tensor) -> Tensor:
    """[n, channels, height, width] to [n, width]; as `AttentionPool2d.forward`."""
    places = images.flatten(2).permute(2, 0, 1)
    places = torch.cat([places.mean(dim=0, keepdim=True), places])
    places = places + pool.positional_embedding[:, None, :].to(places.dtype)
    answer, _ = functional.multi_head_attention_forward(
        query=places[:1],
        key=places,
        value=places,
        embed_dim_to_check=places.shape[-1],
        num_heads=pool.num_heads,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        training=pool.training,
        need_weights=False,
    )
    return answer[0]
