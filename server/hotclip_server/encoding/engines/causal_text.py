"""open_clip's own text transformer (CLIP, SigLIP), over packed tokens."""

from __future__ import annotations

from typing import Any

from open_clip.model import CLIP
from open_clip.transformer import TextTransformer, Transformer
from torch import Tensor, nn

from hotclip_server.encoding.engines.blocks import (
    PRODUCTS_A_LAYER,
    Block,
    Compute,
    LastBlock,
    open_clip_block,
)
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.sequences import Sequences
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.text_tower import Trim


class OpenClipText:
    """A causal tower pooled at its end token, or one that sees all and pools at its last.

    Either way the pooled token is the last of what `TextTower.shorten` leaves.

    Attributes:
        products: Multiplications by weights for each token, about.
    """

    def __init__(self, source: TowerSource, compute: Compute) -> None:
        model: Any = source.model
        tower: Any = model if type(model) is CLIP else model.text
        if type(tower) not in (CLIP, TextTransformer) or type(tower.transformer) is not Transformer:
            raise EngineUnfit("not a text transformer of open_clip")
        self._causal = tower.attn_mask is not None
        if not self._causal and not _sees_all(tower):
            raise EngineUnfit("looks both ways and does not pool at its last token")
        if self._causal and source.text.trim is not Trim.CAUSAL:
            raise EngineUnfit("is causal and does not pool at its end token")
        self._compute = compute
        self._embedding = tower.token_embedding.weight.detach().to(compute.stream)
        self._position = tower.positional_embedding.detach().to(compute.stream)
        blocks = [open_clip_block(block) for block in tower.transformer.resblocks]
        self._blocks = [Block(weights, compute, causal=self._causal) for weights in blocks[:-1]]
        self._last = LastBlock(blocks[-1], compute)
        self.products = PRODUCTS_A_LAYER * len(blocks) * self._embedding.shape[1] ** 2
        self._norm_after = tower.ln_final
        self._projection: nn.Module | Tensor | None = tower.text_projection

    def __call__(self, ids: Tensor, places: Tensor, sequences: Sequences) -> Tensor:
        """
        Args:
            ids: int64 [rows], packed.
            places: int64 [rows], each token's place in its text.

        Returns:
            fp32 [n, dim].
        """
        x = self._embedding.index_select(0, ids) + self._position.index_select(0, places)
        for block in self._blocks:
            x = block(x, sequences)
        pooled = self._norm_after(self._last(x, sequences, sequences.last).float())
        if isinstance(self._projection, nn.Module):
            pooled = self._projection(pooled)
        elif self._projection is not None:
            pooled = pooled @ self._projection
        features: Tensor = pooled
        return features


def _sees_all(tower: Any) -> bool:
    if type(tower) is not TextTransformer:
        return False
    plain = tower.cls_emb is None and not tower.use_pad_mask and not tower.output_tokens
    return bool(plain and tower.pool_type == "last")
