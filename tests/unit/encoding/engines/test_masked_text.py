"""Text towers of Hugging Face without their padding, against themselves with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_clip.hf_model import HFTextEncoder
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from transformers import BertConfig, RobertaConfig, XLMRobertaConfig

from hotclip_server.encoding.engines.converted import ConvertedText
from hotclip_server.encoding.engines.eager import EagerEngine
from hotclip_server.encoding.engines.masked_text import HuggingFaceText
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.engines.torch_engine import TorchEngine, compute_in, pack_texts
from hotclip_server.encoding.protocol import Tower
from hotclip_server.encoding.text_tower import TextTower

CONFIGS = {"bert": BertConfig, "roberta": RobertaConfig, "xlm-roberta": XLMRobertaConfig}
POOLERS = ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"]
CONTEXT, PAD, DIM = 12, 1, 8
CPU = torch.device("cpu")


class Model(nn.Module):
    """What the engines look at of an open_clip model."""

    def __init__(self, text: HFTextEncoder) -> None:
        super().__init__()
        self.text = text

    def encode_text(self, ids: Tensor) -> Tensor:
        features: Tensor = self.text(ids)
        return features


def source_of(kind: str, pooler: str, **changes: Any) -> TowerSource:
    torch.manual_seed(0)
    config = CONFIGS[kind](
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        pad_token_id=PAD,
        **changes,
    )
    text = HFTextEncoder("", DIM, config, pooler, "mlp").eval().requires_grad_(False)
    for name, value in text.named_parameters():
        if "embeddings" in name and value.ndim == 2:
            value.normal_(std=0.5)
    model = Model(text)
    return TowerSource(
        model=model,
        tower=Tower.TEXT,
        text=TextTower(model, CONTEXT),
        preprocess=PreprocessCfg(),
        device=CPU,
        context_length=CONTEXT,
    )


def texts() -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    made = [
        np.concatenate([[0], rng.integers(4, 50, length), [2]]) for length in (0, 3, 10, 5, 1, 3)
    ]
    made[3][2] = PAD  # a text that spells the padding's token
    return made


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_equal_to_the_tower_with_padding(kind: str, pooler: str) -> None:
    source = source_of(kind, pooler)
    expected = EagerEngine(source).run(texts())
    engine = TorchEngine(source, "fp32")
    assert not engine.padded
    np.testing.assert_allclose(engine.run(texts()), expected, atol=2e-5)
    converted = ConvertedText(source, compute_in("fp32", CPU))
    with torch.inference_mode():
        rows = converted(*pack_texts(texts(), None, CPU)).numpy()
    np.testing.assert_allclose(rows, expected, atol=2e-5)


def test_a_tower_with_another_activation_keeps_its_own_code() -> None:
    source = source_of("bert", "mean_pooler", hidden_act="relu")
    with pytest.raises(EngineUnfit, match="activation"):
        HuggingFaceText(source, compute_in("fp32", CPU))
    expected = EagerEngine(source).run(texts())
    np.testing.assert_allclose(TorchEngine(source, "fp32").run(texts()), expected, atol=2e-5)


def test_its_own_code_pads_a_mixed_batch_to_the_longest() -> None:
    source = source_of("bert", "mean_pooler", hidden_act="relu")
    shapes: list[tuple[int, ...]] = []

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if isinstance(module, HFTextEncoder):
            shapes.append(tuple(given[0].shape))

    with nn.modules.module.register_module_forward_pre_hook(look):
        engine = TorchEngine(source, "fp32")
        engine.run(texts())
    assert shapes == [(len(texts()), max(map(len, texts())))]
    assert engine.padded
