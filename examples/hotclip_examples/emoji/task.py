"""The emoji task: searching your own drawing style in your own language.

The story: "our catalogue is drawn in our own style (OpenMoji) and our customers search in
German". Training pairs are German names with the Twemoji drawing of every concept and with
the OpenMoji drawing of a seeded 70 % of them; the other 30 % are searched by name among all
1,906 OpenMoji drawings.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from hotclip_examples.emoji.concepts import load_concepts
from hotclip_examples.emoji.names import Language, concept_name
from hotclip_examples.emoji.render import Style, render

TRAINED_SHARE = 0.7


@dataclass(frozen=True, kw_only=True)
class EmojiPair:
    """A name and the drawing it belongs to; `concept` is the code of both."""

    concept: str
    text: str
    style: Style

    @property
    def image_key(self) -> str:
        return f"{self.style}/{self.concept}"


@dataclass(frozen=True, kw_only=True)
class EmojiTask:
    """`queries` are searched in `index`: for each query the drawing of its own concept."""

    train: tuple[EmojiPair, ...]
    queries: tuple[EmojiPair, ...]
    index: tuple[EmojiPair, ...]


def emoji_task(language: Language = "de", *, seed: int = 0, concepts: int = 1906) -> EmojiTask:
    """Pairs to train on, held-out queries and the index they are searched in.

    The held-out concepts depend on `seed` and `concepts` alone, so that the task in two
    languages asks for the same images. `concepts` below 1,906 keeps a seeded sample of the
    concepts, for a quick run.
    """
    everything = list(load_concepts())
    if not 2 <= concepts <= len(everything):
        raise ValueError(f"concepts must be between 2 and {len(everything)}, got {concepts}")
    generator = random.Random(seed)
    chosen = sorted(generator.sample(everything, concepts), key=lambda concept: concept.code)
    trained = {c.code for c in generator.sample(chosen, round(TRAINED_SHARE * concepts))}

    def pair(style: Style, index: int) -> EmojiPair:
        concept = chosen[index]
        name = concept_name(concept, language)
        return EmojiPair(concept=concept.code, text=name, style=style)

    everywhere = range(len(chosen))
    index = tuple(pair("openmoji", i) for i in everywhere)
    return EmojiTask(
        train=tuple(pair("twemoji", i) for i in everywhere)
        + tuple(drawn for drawn in index if drawn.concept in trained),
        queries=tuple(drawn for drawn in index if drawn.concept not in trained),
        index=index,
    )


def pair_image(pair: EmojiPair, size: int, cache: Path | None = None) -> bytes:
    """PNG bytes of the drawing of `pair`, `size` pixels square, on white."""
    return render(pair.concept, pair.style, size, cache)
