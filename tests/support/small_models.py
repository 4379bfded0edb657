"""Small open_clip models of every kind of tower, in folders as open_clip reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from torch import nn

from hotclip_server.encoding.architecture import OpenClipConfig, build_model

TEXT: dict[str, Any] = {
    "context_length": 16,
    "vocab_size": 49408,
    "width": 32,
    "heads": 2,
    "layers": 2,
}
VISION: dict[str, Any] = {
    "image_size": 32,
    "layers": 2,
    "width": 64,
    "head_width": 32,
    "patch_size": 16,
}
PIECES = (
    "a photo of the red apple and two green pears on an old wooden table in Köln naïve 猫 кошка"
)

TEXTS = [
    "a photo of the red apple",
    "pears",
    "",
    "two green pears on an old wooden table, and a word that nobody has seen: zwölf",
    "猫 und кошка 🐈",
    " ".join([PIECES] * 4),
]


XLM_ROBERTA: dict[str, Any] = {
    "model_type": "xlm-roberta",
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
"""What `config.json` of the kind "xlm-roberta" holds: see `write_text_config`."""


@register_model
def small_pooling_vit(pretrained: bool = False, **options: Any) -> nn.Module:
    """As SigLIP's image towers: no class token, attention pooling."""
    given = {name: options[name] for name in ("num_classes", "global_pool")}
    return VisionTransformer(
        img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, class_token=False, **given
    )


def model_cfg(kind: str = "clip") -> dict[str, Any]:
    """A config: "clip", "quickgelu", "custom-text", "siglip", "resnet", "eos" or "mini"; with
    towers of other libraries "timm-vit", "convnext" or "xlm-roberta"."""
    text, vision = dict(TEXT), dict(VISION)
    config: dict[str, Any] = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    if kind == "quickgelu":
        config["quick_gelu"] = True
    if kind == "custom-text":
        config["custom_text"] = True
    if kind == "siglip":
        config |= {"custom_text": True, "init_logit_bias": -10}
        text |= {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
        text |= {"vocab_size": 600, "hf_tokenizer_name": "small/tokenizer"}
        text["tokenizer_kwargs"] = {"clean": "canonicalize"}
    if kind == "resnet":
        vision |= {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "image_size": 64}
    if kind == "eos":
        text |= {"pool_type": "eos", "eos_id": 49407}
    if kind == "timm-vit":
        config["vision_cfg"] = {"timm_model_name": "small_pooling_vit", "image_size": 32}
        config["vision_cfg"] |= {"timm_pool": "map", "timm_proj": "none"}
    if kind == "convnext":
        config["vision_cfg"] = {"timm_model_name": "convnext_atto", "image_size": 64}
        config["vision_cfg"] |= {"timm_pool": "", "timm_proj": "linear"}
    if kind == "xlm-roberta":
        config["text_cfg"] = {
            "hf_model_name": "small/xlm-roberta",
            "hf_tokenizer_name": "small/xlm-roberta",
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "mlp",
            "context_length": 16,
        }
    if kind == "mini":
        text |= {"vocab_size": 600, "hf_tokenizer_name": "builtin-mini"}
    return config


def write_text_config(folder: Path) -> Path:
    """What `build_model` looks for in the folder of a model of the kind "xlm-roberta"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(XLM_ROBERTA), "utf-8")
    return folder


def write_tokenizer(folder: Path, vocabulary: int = 600) -> None:
    """A byte-level tokenizer that pads with 0, in Hugging Face's files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary - 1,
        special_tokens=["<pad>", "<start>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PIECES], trainer)
    tokenizer.add_special_tokens(["<end>"])
    ends = [(name, tokenizer.token_to_id(name)) for name in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=ends
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<start>",
        "eos_token": "<end>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described), "utf-8")


def write_model(folder: Path, kind: str = "clip", *, seed: int = 0, half: bool = False) -> Path:
    """An open_clip local-dir with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess: dict[str, Any] = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    if kind == "siglip":
        preprocess["resize_mode"] = "squash"
    config = OpenClipConfig(model=model_cfg(kind), preprocess=preprocess)
    (folder / "open_clip_config.json").write_bytes(config.to_json())
    if config.hf_tokenizer:
        write_tokenizer(folder)
    state = random_model(config, folder, seed=seed).state_dict()
    if half:
        state = {name: value.half().contiguous() for name, value in state.items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def random_model(config: OpenClipConfig, folder: Path, *, seed: int) -> nn.Module:
    """Random weights spread so that different inputs give clearly different vectors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config, folder, initialise=True)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.ndim > 1 and "embedding" in name:
                    value.normal_(std=0.5)
    return model
