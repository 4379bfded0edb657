"""What builtin:mini is fine-tuned for: German names, line art, and few pairs.

Held out from builtin:mini: German, and OpenMoji in both styles. Every task trains on some concepts
and asks for others, whose drawings in the new style it has not seen.
"""

from __future__ import annotations

import functools
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hotclip_examples.emoji import Concept, concept_name, load_concepts, render, render_svg
from hotclip_examples.emoji.names import Language
from hotclip_examples.emoji.render import Style, drawing_key, svg_files
from hotclip_server.training.pairs import MemoryPairs, Pair

SIZE = 64
"""Pixels of a drawing: what builtin:mini sees."""
TRAINED_SHARE = 0.7
"""Of the concepts that a new style is shown of."""
FEW = 200
"""Pairs of the task "few"."""
_FLAGS = ("1F1E6", "1F1FF")


@dataclass(frozen=True, kw_only=True)
class Task:
    """`queries` are searched in `index`; `retained` is what the model was good at before."""

    name: str
    train: MemoryPairs
    queries: MemoryPairs
    index: MemoryPairs
    retained: MemoryPairs


def make_task(name: str, seed: int, concepts: int = 0) -> Task:
    """The task with what is held out by a seed; fewer `concepts` than all for a quick look."""
    return {"german": _german, "black": _black, "few": _few}[name](seed, concepts)


TASKS = ("german", "black", "few")


def line_art(code: str) -> bytes:
    """PNG of an OpenMoji drawing without its colours: its black edition but for some fills."""
    svg = ElementTree.fromstring(svg_files("openmoji")[drawing_key(code)].read_text("utf-8"))
    for part in list(svg):
        if not part.get("id", "line").startswith("line"):
            svg.remove(part)
    return render_svg(ElementTree.tostring(svg, "unicode"), SIZE)


def is_flag(concept: Concept) -> bool:
    """Whether without colour it is a rectangle like the others."""
    return _FLAGS[0] <= concept.code[:5] <= _FLAGS[1] or "E0067" in concept.code


def _german(seed: int, count: int) -> Task:
    """German names of Twemoji drawings of all concepts, and of 70 % in OpenMoji's style."""
    chosen = _chosen(load_concepts(), seed, count)
    shown = set(random.Random(seed).sample(chosen, round(TRAINED_SHARE * len(chosen))))
    twemoji = [_pair(concept, "twemoji", "de") for concept in chosen]
    openmoji = {concept: _pair(concept, "openmoji", "de") for concept in chosen}
    return Task(
        name="german",
        train=_set([*twemoji, *(pair for concept, pair in openmoji.items() if concept in shown)]),
        queries=_set([pair for concept, pair in openmoji.items() if concept not in shown]),
        index=_set(openmoji.values()),
        retained=_retained(chosen),
    )


def _black(seed: int, count: int) -> Task:
    """English names of 70 % of the concepts in OpenMoji's line art; country flags left out."""
    return _drawn("black", seed, count, limit=None)


def _few(seed: int, count: int) -> Task:
    """As "black", with 200 pairs alone."""
    return _drawn("few", seed, count, limit=FEW)


def _drawn(name: str, seed: int, count: int, limit: int | None) -> Task:
    chosen = _chosen([c for c in load_concepts() if not is_flag(c)], seed, count)
    shown = random.Random(seed).sample(chosen, round(TRAINED_SHARE * len(chosen)))
    others = [concept for concept in chosen if concept not in set(shown)]
    pairs = {concept: _pair(concept, "line", "en") for concept in chosen}
    return Task(
        name=name,
        train=_set([pairs[concept] for concept in shown[:limit]]),
        queries=_set([pairs[concept] for concept in others]),
        index=_set(pairs.values()),
        retained=_retained(chosen),
    )


def _retained(concepts: Sequence[Concept]) -> MemoryPairs:
    """English names of Twemoji drawings, which builtin:mini was trained on."""
    return _set([_pair(concept, "twemoji", "en") for concept in concepts])


def _chosen(concepts: Sequence[Concept], seed: int, count: int) -> list[Concept]:
    if not count:
        return list(concepts)
    return sorted(random.Random(seed).sample(list(concepts), count), key=lambda c: c.code)


def _pair(concept: Concept, style: str, language: Language) -> Pair:
    text = concept_name(concept, language)
    return Pair(f"{style}/{concept.code}", text, group=concept.code)


def _set(pairs: Iterable[Pair]) -> MemoryPairs:
    made = list(pairs)
    return MemoryPairs(made, {pair.image_key: _drawing(pair.image_key) for pair in made})


@functools.cache
def _drawing(key: str) -> bytes:
    style, _, code = key.partition("/")
    if style == "line":
        return line_art(code)
    known: Style = "twemoji" if style == "twemoji" else "openmoji"
    return render(code, known, SIZE)
