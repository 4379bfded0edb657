"""Text towers of Hugging Face that normalise after each layer (BERT, RoBERTa, XLM-R)."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler
from torch import Tensor, nn
from torch.nn import functional as F

from hotclip_server.encoding.engines.blocks import PRODUCTS_A_LAYER, Compute, attention
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.sequences import Sequences
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.text_tower import Trim

PLACES_COUNTED = {"BertModel": False, "RobertaModel": True, "XLMRobertaModel": True}
"""Encoders of transformers, and whether places count only tokens that are looked at. By name,
because their modules take half a second to import where no model needs them."""


class HuggingFaceText:
    """An encoder that sees all but the padding, pooled by the mean or at its first token.

    Attributes:
        products: Multiplications by weights for each token, about.
    """

    def __init__(self, source: TowerSource, compute: Compute) -> None:
        tower: Any = getattr(source.model, "text", None)
        if type(tower) is not HFTextEncoder or not _is_known(tower.transformer):
            raise EngineUnfit("not a text tower of Hugging Face that is known here")
        encoder = tower.transformer
        config = encoder.config
        if source.text.trim is not Trim.MASKED or getattr(config, "is_decoder", False):
            raise EngineUnfit("its padding can't be left out")
        absolute = getattr(config, "position_embedding_type", "absolute") or "absolute"
        if absolute != "absolute" or config.hidden_act not in ("gelu", "gelu_pytorch_tanh"):
            raise EngineUnfit("positions or activation are not plain")
        self._compute = compute
        embeddings = encoder.embeddings
        # RoBERTa counts only tokens that it looks at, from the padding's id + 1.
        self._counted_from: int | None = None
        if PLACES_COUNTED[type(encoder).__name__]:
            self._counted_from = config.pad_token_id + 1
        self._words = embeddings.word_embeddings.weight.detach().to(compute.stream)
        self._places = (
            embeddings.position_embeddings.weight.detach()
            + embeddings.token_type_embeddings.weight.detach()[0]
        ).to(compute.stream)
        self._norm = embeddings.LayerNorm
        self._layers = [_Layer(layer, config, compute) for layer in encoder.encoder.layer]
        self.products = PRODUCTS_A_LAYER * len(self._layers) * self._words.shape[1] ** 2
        self._pooler, self._after, self._projection = tower.pooler, encoder.pooler, tower.proj
        if type(self._pooler) not in (MeanPooler, ClsPooler, ClsLastHiddenStatePooler):
            raise EngineUnfit(f"pools by {type(self._pooler).__name__}")

    def __call__(self, ids: Tensor, places: Tensor, sequences: Sequences) -> Tensor:
        """
        Args:
            ids: int64 [rows], packed.
            places: int64 [rows], each token's place in its text.

        Returns:
            fp32 [n, dim].
        """
        if self._counted_from is not None:
            counted = torch.arange(len(sequences.owner), device=ids.device) + self._counted_from
            counted -= sequences.first.index_select(0, sequences.owner)
            places = F.pad(counted, (0, len(ids) - len(counted)))
        x = self._words.index_select(0, ids) + self._places.index_select(0, places)
        x = self._norm(x.float()).to(self._compute.stream)
        for layer in self._layers:
            x = layer(x, sequences)
        features: Tensor = self._projection(self._pool(x, sequences))
        return features

    def _pool(self, x: Tensor, sequences: Sequences) -> Tensor:
        if type(self._pooler) is MeanPooler:
            sums = torch.zeros(sequences.n, x.shape[1], device=x.device)
            sums.index_add_(0, sequences.owner, x[: len(sequences.owner)].float())
            return sums / (sequences.last - sequences.first + 1)[:, None]
        first = x.index_select(0, sequences.first).float()
        after = type(self._pooler) is ClsPooler and self._pooler.use_pooler_output
        if after and self._after is not None:
            pooled: Tensor = self._after(first[:, None])
            return pooled
        return first


def _is_known(encoder: nn.Module) -> bool:
    kind = type(encoder)
    return kind.__name__ in PLACES_COUNTED and kind.__module__.startswith("transformers.models.")


class _Layer:
    """Attention, then two layers, each added and normalised."""

    def __init__(self, layer: Any, config: Any, compute: Compute) -> None:
        own, out = layer.attention.self, layer.attention.output
        weight = torch.cat([part.weight for part in (own.query, own.key, own.value)])
        bias = torch.cat([part.bias for part in (own.query, own.key, own.value)])
        gelu = "gelu" if config.hidden_act == "gelu" else "gelu_tanh"
        self._heads: int = own.num_attention_heads
        self._qkv = compute.linear(weight, bias)
        self._out = compute.linear(out.dense.weight, out.dense.bias)
        self._norm_1, self._norm_2 = out.LayerNorm, layer.output.LayerNorm
        inner = layer.intermediate.dense
        self._up = compute.linear(inner.weight, inner.bias, gelu)
        self._down = compute.linear(layer.output.dense.weight, layer.output.dense.bias)
        self._dtype, self._stream = compute.dtype, compute.stream

    def __call__(self, x: Tensor, sequences: Sequences) -> Tensor:
        """[tokens, width] to the same."""
        attended = attention(self._qkv(x.to(self._dtype)), self._heads, sequences, causal=False)
        x = self._normal(self._norm_1, self._out.plus(attended, x))
        return self._normal(self._norm_2, self._down.plus(self._up(x.to(self._dtype)), x))

    def _normal(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, tuple(norm.normalized_shape), norm.weight, norm.bias, norm.eps).to(
            self._stream
        )
