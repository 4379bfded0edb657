"""open_clip's tokenizers, callable from many threads and without torch where that is exact.

`transformers` loads slowly and its fast tokenizers refuse concurrent calls. So a tokenizer
that is a `tokenizer.json` is read with the `tokenizers` library; `describe` allows that only
after both gave the same ids for `PROBES`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import open_clip
import tokenizers
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from torch import Tensor

from hotclip_server.encoding.architecture import OpenClipConfig

SETTINGS_FILE = "hotclip_tokenizer.json"
_CACHED_WORDS = 100_000

PROBES = (
    "",
    " ",
    "a",
    "A photo of a CAT, isn't it?",
    "  two   spaces\tand\na line ",
    "Grüße aus Köln – naïve café",
    "猫が好きです。 кошка 고양이 قطة",
    "👩‍👩‍👧 🏳️‍🌈 ☃",
    "&lt;b&gt; &amp;amp; under_scores #tags @names 3.14 1,000",
    "<s> </s> <pad> <unk> <end> <start_of_text>",
    "donau­dampf­schiff" + "fahrt" * 40,
    "word " * 200,
)


class TextTokenizer(Protocol):
    """What the encoder and the trainer need of a tokenizer."""

    @property
    def context_length(self) -> int:
        """Tokens of a padded text."""

    def ids(self, text: str) -> NDArray[np.int64]:
        """int64 (context_length,), cut and padded as open_clip does. Thread-safe."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [n, context_length] of several texts."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """What `tokenizer.json` does not say."""

    pad_id: int
    pad_token: str
    pad_type_id: int
    padding_side: str
    truncation_side: str
    sep_id: int | None


class FastTokenizer:
    """Equal to open_clip's `HFTokenizer`, by the `tokenizers` library alone."""

    def __init__(
        self, backend: tokenizers.Tokenizer, settings: TokenizerSettings, config: OpenClipConfig
    ) -> None:
        options = config.text.get("tokenizer_kwargs") or {}
        self.context_length = config.context_length
        self._backend = backend
        self._clean = get_clean_fn(options.get("clean", "whitespace"))
        self._strip = settings.sep_id if options.get("strip_sep_token") else None
        backend.enable_truncation(self.context_length, direction=settings.truncation_side)
        backend.enable_padding(
            direction=settings.padding_side,
            pad_id=settings.pad_id,
            pad_type_id=settings.pad_type_id,
            pad_token=settings.pad_token,
            length=self.context_length,
        )

    def ids(self, text: str) -> NDArray[np.int64]:
        ids = np.array(self._backend.encode(self._clean(text)).ids, np.int64)
        if self._strip is not None:
            ids[ids == self._strip] = 0
        return ids

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return _stack(self, texts)


class BytePairTokenizer:
    """open_clip's own `SimpleTokenizer`, without the tensor in between."""

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        self.context_length = int(tokenizer.context_length)
        self._tokenizer = tokenizer

    def ids(self, text: str) -> NDArray[np.int64]:
        own = self._tokenizer
        if len(own.cache) > _CACHED_WORDS:  # it would grow with every new word
            own.cache = {name: name for name in ("<start_of_text>", "<end_of_text>")}
        tokens = [own.sot_token_id, *own.encode(text), own.eot_token_id][: self.context_length]
        if len(tokens) == self.context_length:
            tokens[-1] = own.eot_token_id
        padded = np.zeros(self.context_length, np.int64)
        padded[: len(tokens)] = tokens
        return padded

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return _stack(self, texts)


class LockedTokenizer:
    """Any other open_clip tokenizer, one call at a time."""

    def __init__(self, tokenizer: Any) -> None:
        self.context_length = int(tokenizer.context_length)
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def ids(self, text: str) -> NDArray[np.int64]:
        ids: NDArray[np.int64] = self([text])[0].numpy()
        return ids

    def __call__(self, texts: Sequence[str]) -> Tensor:
        with self._lock:
            tokens: Tensor = self._tokenizer(list(texts))
        return tokens


def load_tokenizer(config: OpenClipConfig, folder: Path) -> TextTokenizer:
    """The tokenizer of a stored version; needs no network."""
    settings_file = folder / SETTINGS_FILE
    if settings_file.is_file():
        settings = TokenizerSettings(**json.loads(settings_file.read_bytes()))
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        return FastTokenizer(backend, settings, config)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    if type(tokenizer) is SimpleTokenizer and tokenizer.reduction_fn is None:
        return BytePairTokenizer(tokenizer)
    return LockedTokenizer(tokenizer)


def tokenizer_files(tokenizer: Any, config: OpenClipConfig, folder: Path) -> None:
    """Writes into `folder` what `load_tokenizer` needs; nothing for open_clip's own.

    Args:
        tokenizer: What open_clip's `get_tokenizer` returned.
        folder: Holds nothing of a tokenizer yet.
    """
    if not isinstance(tokenizer, HFTokenizer):
        return
    tokenizer.tokenizer.save_pretrained(str(folder))
    settings = _settings_if_equal(tokenizer, config, folder)
    if settings is not None:
        text = json.dumps(asdict(settings), indent=2, sort_keys=True) + "\n"
        (folder / SETTINGS_FILE).write_text(text, "utf-8")


def tokenizer_inputs(files: Mapping[str, str], config: OpenClipConfig) -> object:
    """What the text fingerprint covers of the tokenizer.

    Args:
        files: sha256 of each of its files.
    """
    return {
        "files": dict(files) or "open_clip byte pairs",
        "context_length": config.context_length,
        "mode": config.text.get("tokenizer_mode"),
        "options": config.text.get("tokenizer_kwargs") or {},
    }


def _settings_if_equal(
    tokenizer: HFTokenizer, config: OpenClipConfig, folder: Path
) -> TokenizerSettings | None:
    file, own = folder / "tokenizer.json", tokenizer.tokenizer
    if not file.is_file() or tokenizer.tokenizer_mode or own.pad_token_id is None:
        return None
    settings = TokenizerSettings(
        pad_id=own.pad_token_id,
        pad_token=own.pad_token,
        pad_type_id=own.pad_token_type_id,
        padding_side=own.padding_side,
        truncation_side=own.truncation_side,
        sep_id=own.sep_token_id,
    )
    fast = FastTokenizer(tokenizers.Tokenizer.from_file(str(file)), settings, config)
    expected = tokenizer(list(PROBES)).numpy()
    equal = all(
        np.array_equal(fast.ids(text), row) for text, row in zip(PROBES, expected, strict=True)
    )
    return settings if equal else None


def _stack(tokenizer: TextTokenizer, texts: Sequence[str]) -> Tensor:
    if not texts:
        return torch.zeros(0, tokenizer.context_length, dtype=torch.int64)
    return torch.from_numpy(np.stack([tokenizer.ids(text) for text in texts]))
