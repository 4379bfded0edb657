"""Captions in plain English, from a seed: no two alike."""

import numpy as np

WHO = (
    "woman man child dog cat horse bird girl boy cyclist farmer singer painter driver surfer "
    "skier baker soldier nurse teacher"
)
LOOKS = (
    "young old small tall happy tired wet red blue green yellow brown black white striped "
    "shiny broken heavy quiet famous"
)
DOES = (
    "holding watching carrying riding painting washing following leaving chasing fixing "
    "lifting selling crossing climbing building drawing"
)
WHAT = (
    "bicycle umbrella ball basket car boat kite ladder table guitar bottle flower book chair "
    "camera box window bridge tree fence clock piano"
)
WHERE = (
    "street beach garden kitchen forest market station field river mountain city park harbour "
    "village bedroom office school desert church stadium"
)
WHEN = "morning evening night winter summer rain snow fog sunshine storm"
SHORT_WORDS = range(8, 15)
LONG_WORDS = range(62, 76)
"""Words of a long caption; a tokenizer makes at least as many tokens of them."""


class Writer:
    """Makes captions one after another; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._words = [words.split() for words in (WHO, LOOKS, DOES, WHAT, LOOKS, WHERE, WHEN)]
        self._known: set[str] = set()

    def short(self) -> str:
        """8 to 14 words."""
        return self._new(SHORT_WORDS)

    def long(self) -> str:
        """62 to 75 words, so more than 60 tokens."""
        return self._new(LONG_WORDS)

    def _new(self, lengths: range) -> str:
        while True:
            count = int(self._random.choice(lengths))
            words = self._clause()
            while len(words) < count:
                words += ["while", *self._clause()]
            caption = " ".join(words[:count])
            if caption not in self._known:
                self._known.add(caption)
                return caption

    def _clause(self) -> list[str]:
        who, looks, does, what, other, where, when = (
            str(self._random.choice(words)) for words in self._words
        )
        return f"a {looks} {who} {does} the {other} {what} near the {where} in the {when}".split()
