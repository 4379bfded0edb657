"""Vision transformers of timm, from uint8 pixels to features; imports timm."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.timm_model import TimmModel
from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from hotclip_server.encoding.engines.blocks import (
    PRODUCTS_A_LAYER,
    Block,
    BlockWeights,
    Compute,
    LastBlock,
    OneQuery,
    layers,
)
from hotclip_server.encoding.engines.linear import activation_of
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.sequences import Sequences
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.engines.vit import Patches


class TimmVit:
    """timm's `VisionTransformer` with attention pooling (SigLIP), a class token or the mean."""

    def __init__(self, source: TowerSource, compute: Compute) -> None:
        visual: Any = source.model.visual
        if type(visual) is not TimmModel or type(visual.trunk) is not TimmVisionTransformer:
            raise EngineUnfit("not a VisionTransformer of timm")
        trunk: Any = visual.trunk
        embed = trunk.patch_embed
        known = type(embed) is PatchEmbed and type(embed.norm) is nn.Identity and embed.flatten
        known = known and not embed.dynamic_img_pad and not trunk.dynamic_img_size
        known = known and trunk.reg_token is None and trunk.pos_embed is not None
        known = known and not (trunk.no_embed_class and trunk.cls_token is not None)
        if not known or trunk.global_pool not in ("map", "token", "avg"):
            raise EngineUnfit("this VisionTransformer of timm is not known")
        self._compute, self._trunk = compute, trunk
        self._patches = Patches(embed.proj, source, compute)
        position = trunk.pos_embed.detach()[0]
        self._class: Tensor | None = None
        if trunk.cls_token is not None:
            self._class = (trunk.cls_token.detach()[0, 0] + position[0]).to(compute.stream)
            position = position[1:]
        self._position = (position + self._patches.bias).to(compute.stream)
        blocks = [timm_block(block) for block in trunk.blocks]
        self._blocks = [Block(weights, compute, causal=False) for weights in blocks]
        rows, width = self._position.shape
        self.products = PRODUCTS_A_LAYER * len(blocks) * width**2 * rows
        self._last: LastBlock | None = None
        self._latent: LatentPool | None = None
        if trunk.global_pool == "map":
            self._latent = LatentPool(trunk.attn_pool, compute)
        elif trunk.global_pool == "token":
            self._blocks.pop()
            self._last = LastBlock(blocks[-1], compute)
        self._head = visual.head

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] to fp32 [n, dim]."""
        patches = self._patches(pixels)
        n, count, width = patches.shape
        prefix = int(self._class is not None)
        x = torch.empty(n, prefix + count, width, dtype=self._compute.stream, device=patches.device)
        if self._class is not None:
            x[:, 0] = self._class
        torch.add(patches, self._position, out=x[:, prefix:])
        trunk = self._trunk
        x = trunk.norm_pre(x.float()).to(self._compute.stream).view(-1, width)
        sequences = Sequences([prefix + count] * n, patches.device)
        for block in self._blocks:
            x = block(x, sequences)
        if self._last is not None:
            pooled = trunk.norm(self._last(x, sequences, sequences.first).float())
        else:
            tokens = trunk.norm(sequences.pad(x).float())
            if not trunk.pool_include_prefix:
                tokens = tokens[:, prefix:]
            pooled = self._latent(tokens) if self._latent is not None else tokens.mean(1)
        features: Tensor = self._head(trunk.head(trunk.fc_norm(pooled)))
        return features


class LatentPool:
    """timm's `AttentionPoolLatent` with one latent: its query is the same for every image."""

    def __init__(self, module: nn.Module, compute: Compute) -> None:
        if type(module) is not AttentionPoolLatent:
            raise EngineUnfit(f"pools by {type(module).__name__}")
        pool: Any = module
        plain = pool.latent_len == 1 and pool.pos_embed is None and pool.pool == "token"
        plain = plain and type(pool.q_norm) is nn.Identity and type(pool.k_norm) is nn.Identity
        if not plain or pool.mlp is None or type(pool.mlp.norm) is not nn.Identity:
            raise EngineUnfit("the attention pooling is not plain")
        self._compute = compute
        self._query = pool.q(pool.latent[0]).detach().to(compute.dtype)  # [1, width]
        width = pool.kv.weight.shape[0] // 2
        key, value = pool.kv.weight.split(width)
        bias = None if pool.kv.bias is None else pool.kv.bias[width:]
        self._attention = OneQuery(pool.num_heads, key, value, bias, compute.dtype)
        self._out = compute.linear(pool.proj.weight, pool.proj.bias)
        self._norm = pool.norm
        mlp = pool.mlp
        self._up, self._down = layers(
            mlp.fc1.weight,
            mlp.fc1.bias,
            activation_of(mlp.act),
            mlp.fc2.weight,
            mlp.fc2.bias,
            compute,
        )

    def __call__(self, tokens: Tensor) -> Tensor:
        """fp32 [n, length, width] to fp32 [n, width]."""
        dtype = self._compute.dtype
        query = self._query.expand(len(tokens), -1)
        x = self._out(self._attention(query, tokens.to(dtype), None)).float()
        return x + self._down(self._up(self._norm(x).to(dtype))).float()


def timm_block(block: nn.Module) -> BlockWeights:
    """The weights of timm's plain block.

    Raises:
        EngineUnfit: it is another, or was changed.
    """
    known: Any = block
    if type(block) is not TimmBlock or type(known.attn) is not Attention:
        raise EngineUnfit(f"{type(block).__name__} is not a block known here")
    attention, mlp = known.attn, known.mlp
    identities = (attention.q_norm, attention.k_norm, attention.norm, known.ls1, known.ls2)
    plain = all(type(module) is nn.Identity for module in identities) and attention.gate is None
    if not plain or type(mlp) is not Mlp or type(mlp.norm) is not nn.Identity:
        raise EngineUnfit("the block is not plain")
    return BlockWeights(
        heads=attention.num_heads,
        norm_1=known.norm1,
        qkv_weight=attention.qkv.weight,
        qkv_bias=attention.qkv.bias,
        out_weight=attention.proj.weight,
        out_bias=attention.proj.bias,
        norm_2=known.norm2,
        up_weight=mlp.fc1.weight,
        up_bias=mlp.fc1.bias,
        activation=activation_of(mlp.act),
        down_weight=mlp.fc2.weight,
        down_bias=mlp.fc2.bias,
    )
