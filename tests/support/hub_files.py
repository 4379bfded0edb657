"""Small stand-ins for what open_clip asks a hub for: tokenizers and a text tower's config."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import UnigramTrainer

SENTENCES = [
    "a photo of a red apple on a wooden table",
    "two dogs playing in the snow near a lake",
    "ein Foto von einem roten Apfel auf einem Holztisch",
    "une photo d'une pomme rouge sur une table en bois",
    "猫が窓のそばで寝ている 赤いりんご",
    "кошка спит у окна, рядом красное яблоко",
    "the quick brown fox jumps over the lazy dog, 0123456789 times!",
]


def siglip_tokenizer(folder: Path) -> None:
    """T5's kind: lower-case pieces, `</s>` at the end, padded with it."""
    tokenizer = _unigram(["<pad>", "</s>", "<unk>"], "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    described = {
        "tokenizer_class": "T5Tokenizer",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": 0,
        "additional_special_tokens": [],
        "model_max_length": 64,
        "clean_up_tokenization_spaces": True,
    }
    _write(folder, tokenizer, described)


def xlm_roberta(folder: Path, *, layers: int = 3, width: int = 192) -> None:
    """Config and tokenizer of an XLM-RoBERTa of few layers."""
    tokenizer = _unigram(["<s>", "<pad>", "</s>", "<unk>"], "<unk>")
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    described = {
        "tokenizer_class": "XLMRobertaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "model_max_length": 512,
    }
    _write(folder, tokenizer, described)
    config = {
        "architectures": ["XLMRobertaForMaskedLM"],
        "model_type": "xlm-roberta",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def _unigram(special: list[str], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return tokenizer


def _write(folder: Path, tokenizer: Tokenizer, described: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(described), "utf-8")
