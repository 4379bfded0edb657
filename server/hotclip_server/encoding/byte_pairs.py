"""open_clip's own byte-pair tokenizer, with a memory of words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from hotclip_server.encoding.cleaning import quick_clean
from hotclip_server.encoding.merges import merged
from hotclip_server.encoding.protocol import Truncate
from hotclip_server.encoding.token_ids import padded, stacked, too_long

_KNOWN_WORDS = 50_000
_LONGEST_KNOWN = 64
"""Characters; longer ones seldom come twice."""


class BytePairTokenizer:
    """Equal to open_clip's `SimpleTokenizer`. Thread-safe.

    No match of the tokenizer's pattern holds a space, so a cleaned text is tokenised one word
    after the other, and what came of a word is remembered.
    """

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        self.context_length = int(tokenizer.context_length)
        self._tokenizer = tokenizer
        self._clean = quick_clean(tokenizer.clean_fn)
        self._marks = {tokenizer.decoder[mark] for mark in tokenizer.all_special_ids}
        self._words: dict[str, tuple[int, ...]] = {}

    @property
    def source(self) -> SimpleTokenizer:
        """open_clip's own."""
        return self._tokenizer

    @staticmethod
    def can_stand_for(tokenizer: Any) -> bool:
        """Whether it is one of those that are tokenised alike."""
        return bool(
            type(tokenizer) is SimpleTokenizer
            and tokenizer.reduction_fn is None
            and len(tokenizer.all_special_ids) == 2  # others might hold a space
        )

    def ids(self, text: str, truncate: Truncate = Truncate.END) -> NDArray[np.int64]:
        """int64 (context_length,)."""
        own, context = self._tokenizer, self.context_length
        ids = [own.sot_token_id]
        words = self._words
        enough = context if truncate is Truncate.END else math.inf
        for word in self._clean(text).split(" "):
            known = words.get(word)
            ids += self._learn(word) if known is None else known
            if len(ids) >= enough:
                break
        ids.append(own.eot_token_id)
        if len(ids) > context:
            if truncate is Truncate.NONE:
                raise too_long(len(ids), context)
            if truncate is Truncate.END:
                ids = ids[: context - 1] + ids[-1:]
            else:
                ids = ids[:1] + ids[1 - context :]
        return padded(ids, context)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [n, context_length]."""
        return stacked(self.ids, texts, self.context_length)

    def _learn(self, word: str) -> tuple[int, ...]:
        own = self._tokenizer
        ids: list[int] = []
        for match in own.pat.findall(word):
            token = "".join(own.byte_encoder[byte] for byte in match.encode())
            if token in self._marks:
                parts = [token]
            else:
                parts = merged([*token[:-1], token[-1] + "</w>"], own.bpe_ranks)
            ids += [own.encoder[part] for part in parts]
        known = tuple(ids)
        if len(word) <= _LONGEST_KNOWN:
            if len(self._words) > _KNOWN_WORDS:
                self._words = {}
            self._words[word] = known
        return known
