"""open_clip's tokenizers, callable from many threads and without torch where that is exact.

`transformers` loads slowly and its fast tokenizers refuse concurrent calls. So a tokenizer
that is a `tokenizer.json` is read with the `tokenizers` library; `describe` allows that only
after both gave the same ids for `PROBES`.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import open_clip
import tokenizers
from numpy.typing import NDArray
from open_clip.tokenizer import HFTokenizer, get_clean_fn
from torch import Tensor

from hotclip_server.encoding.architecture import OpenClipConfig
from hotclip_server.encoding.byte_pairs import BytePairTokenizer
from hotclip_server.encoding.cleaning import quick_clean
from hotclip_server.encoding.protocol import Truncate
from hotclip_server.encoding.token_ids import padded, stacked, too_long
from hotclip_server.errors import InvalidArgument

SETTINGS_FILE = "hotclip_tokenizer.json"
_TOKENIZER_FILE, _CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
_OF_THE_MACHINE = ("is_local", "local_files_only")
"""Where `transformers` read a tokenizer from, and whether it might have asked the hub: it saves
both as if they were of the tokenizer."""

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

    def ids(self, text: str, truncate: Truncate = Truncate.END) -> NDArray[np.int64]:
        """int64 (context_length,), cut and padded as open_clip does. Thread-safe.

        Raises:
            InvalidArgument: reasons TEXT_TOO_LONG, TRUNCATE_UNSUPPORTED.
        """

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
        self._settings = settings
        self._clean = quick_clean(get_clean_fn(options.get("clean", "whitespace")))
        self._strip = settings.sep_id if options.get("strip_sep_token") else None
        backend.no_truncation()
        backend.no_padding()
        self._marks = backend.num_special_tokens_to_add(False)
        """Tokens that mark start and end."""
        self._room = self.context_length - self._marks

    def ids(self, text: str, truncate: Truncate = Truncate.END) -> NDArray[np.int64]:
        ids = self._fitting_ids(self._clean(text), truncate)
        left = self._settings.padding_side == "left"
        row = padded(ids, self.context_length, self._settings.pad_id, left=left)
        if self._strip is not None:
            row[row == self._strip] = 0
        return row

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return stacked(self.ids, texts, self.context_length)

    def _fitting_ids(self, text: str, truncate: Truncate) -> list[int]:
        encoding = self._backend.encode(text, add_special_tokens=False)
        if len(encoding) > self._room:
            if truncate is Truncate.NONE:
                raise too_long(len(encoding) + self._marks, self.context_length)
            side = "left" if truncate is Truncate.START else self._settings.truncation_side
            encoding.truncate(self._room, direction=side)
        return self._backend.post_process(encoding).ids


class LockedTokenizer:
    """Any other open_clip tokenizer, one call at a time; cuts as that one does."""

    def __init__(self, tokenizer: Any) -> None:
        self.context_length = int(tokenizer.context_length)
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def ids(self, text: str, truncate: Truncate = Truncate.END) -> NDArray[np.int64]:
        if truncate is not Truncate.END:
            raise InvalidArgument.field(
                "truncate",
                f"{truncate.name} is not possible with the tokenizer of this model",
                reason="TRUNCATE_UNSUPPORTED",
            )
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
        backend = tokenizers.Tokenizer.from_file(str(folder / _TOKENIZER_FILE))
        return FastTokenizer(backend, settings, config)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    if BytePairTokenizer.can_stand_for(tokenizer):
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
    _forget_the_machine(folder / _CONFIG_FILE)
    settings = _settings_if_equal(tokenizer, config, folder)
    if settings is not None:
        text = json.dumps(asdict(settings), indent=2, sort_keys=True) + "\n"
        (folder / SETTINGS_FILE).write_text(text, "utf-8")


def _forget_the_machine(file: Path) -> None:
    """Else the same tokenizer would have several fingerprints."""
    if not file.is_file():
        return
    described = json.loads(file.read_bytes())
    kept = {name: value for name, value in described.items() if name not in _OF_THE_MACHINE}
    text = json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    file.write_text(text, "utf-8")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the files of a tokenizer that has its settings beside it."""
    for name in (_TOKENIZER_FILE, _CONFIG_FILE, SETTINGS_FILE):
        shutil.copyfile(source / name, folder / name)


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
    file, own = folder / _TOKENIZER_FILE, tokenizer.tokenizer
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
