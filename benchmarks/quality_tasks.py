"""What builtin:mini is fine-tuned for: German names, line art, few pairs, and labels.

Held out from builtin:mini: German, and OpenMoji in both styles. Every task asks for drawings in the
new style that it did not see, of the 30 % of the concepts that the style was not shown of.
"""

from __future__ import annotations

import functools
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.emoji_labels import labels_of
from hotclip_examples.emoji import Concept, concept_name, load_concepts, render, render_svg
from hotclip_examples.emoji.names import Language
from hotclip_examples.emoji.render import Style, drawing_key, svg_files
from hotclip_server.training.pairs import Pair

SIZE = 64
"""Pixels of a drawing: what builtin:mini sees."""
TRAINED_SHARE = 0.7
"""Of the concepts that a new style is shown of."""
CHOSEN_BY_SHARE = 0.1
"""Of the drawings in the new style that might be trained on: the best epoch is chosen by them."""
FEW = 200
"""Pairs of the task "few", those that the epoch is chosen by among them."""
_FLAGS = ("1F1E6", "1F1FF")


@dataclass(frozen=True)
class Drawings:
    """Pairs whose images are drawn when they are read; the key of an image is "style/code"."""

    pairs: Sequence[Pair]

    def image_bytes(self, image_key: str) -> bytes:
        return _drawing(image_key)


@dataclass(frozen=True, kw_only=True)
class Task:
    """`queries` are searched in `index`; `retained` in `old_index`, as the model could before."""

    name: str
    train: Drawings
    chosen_by: Drawings
    """In the new style and of no training pair: the best epoch is chosen by these."""
    queries: Drawings
    index: Drawings
    old: Drawings
    """Some of what the model was trained on before, to be mixed in; nothing of it is `retained`."""
    retained: Drawings
    old_index: Drawings


def make_task(name: str, seed: int, concepts: int = 0) -> Task:
    """The task with what is held out by a seed; fewer `concepts` than all for a quick look."""
    tasks = {
        "german": _german,
        "black": _black,
        "black_alone": _black_alone,
        "few": _few,
        "labels": _labels,
    }
    return tasks[name](seed, concepts)


TASKS = ("german", "black", "black_alone", "few", "labels")


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
    twemoji = [_pair(concept, "twemoji", "de") for concept in chosen]
    return _task("german", seed, chosen, ("openmoji", "de"), more=twemoji)


def _black(seed: int, count: int) -> Task:
    """English names of OpenMoji's coloured drawings of all concepts, and of 70 % in its line art;
    country flags left out."""
    chosen = _chosen([c for c in load_concepts() if not is_flag(c)], seed, count)
    coloured = [_pair(concept, "openmoji", "en") for concept in chosen]
    return _task("black", seed, chosen, ("line", "en"), more=coloured)


def _black_alone(seed: int, count: int) -> Task:
    """As "black", without the coloured drawings."""
    chosen = _chosen([c for c in load_concepts() if not is_flag(c)], seed, count)
    return _task("black_alone", seed, chosen, ("line", "en"))


def _few(seed: int, count: int) -> Task:
    """As "black_alone", with 200 pairs."""
    chosen = _chosen([c for c in load_concepts() if not is_flag(c)], seed, count)
    return _task("few", seed, chosen, ("line", "en"), limit=FEW)


def _labels(seed: int, count: int) -> Task:
    """Both styles of 70 % of the concepts, each drawing with its name and with its label as texts;
    asked for by label, which several are right for, among the other 30 % alone."""
    labels = labels_of(load_concepts())
    chosen = _chosen([c for c in load_concepts() if c.code in labels], seed, count)
    named = _task("labels", seed, chosen, ("openmoji", "en"))

    def label(pair: Pair) -> str:
        return labels[pair.image_key.partition("/")[2]]

    def by_label(pairs: Sequence[Pair]) -> list[Pair]:
        return [replace(pair, text=label(pair), label=label(pair)) for pair in pairs]

    drawn = (*named.old.pairs, *named.train.pairs)
    by_name = [replace(pair, label=label(pair)) for pair in drawn]
    others = Drawings(by_label(named.queries.pairs))
    return replace(
        named,
        train=Drawings([*by_name, *by_label(drawn)]),
        chosen_by=Drawings(by_label(named.chosen_by.pairs)),
        queries=others,
        index=others,
    )


def _task(
    name: str,
    seed: int,
    chosen: Sequence[Concept],
    new: tuple[str, Language],
    *,
    more: Sequence[Pair] = (),
    limit: int | None = None,
) -> Task:
    """With the style and language `new`, at most `limit` pairs of it, and `more` to train on."""
    style, language = new
    shown = random.Random(seed).sample(chosen, round(TRAINED_SHARE * len(chosen)))
    known = set(shown)
    others = [concept for concept in chosen if concept not in known]
    drawn = [_pair(concept, style, language) for concept in shown[:limit]]
    held = max(2, round(CHOSEN_BY_SHARE * len(drawn)))
    return Task(
        name=name,
        train=Drawings([*more, *drawn[held:]]),
        chosen_by=Drawings(drawn[:held]),
        queries=_all(others, style, language),
        index=_all(chosen, style, language),
        old=_all(shown, "twemoji", "en"),
        retained=_all(others, "twemoji", "en"),
        old_index=_all(chosen, "twemoji", "en"),
    )


def _all(concepts: Iterable[Concept], style: str, language: Language) -> Drawings:
    return Drawings([_pair(concept, style, language) for concept in concepts])


def _chosen(concepts: Sequence[Concept], seed: int, count: int) -> list[Concept]:
    if not count:
        return list(concepts)
    return sorted(random.Random(seed).sample(list(concepts), count), key=lambda c: c.code)


def _pair(concept: Concept, style: str, language: Language) -> Pair:
    text = concept_name(concept, language)
    return Pair(f"{style}/{concept.code}", text, group=concept.code)


@functools.cache
def _drawing(key: str) -> bytes:
    style, _, code = key.partition("/")
    if style == "line":
        return line_art(code)
    known: Style = "twemoji" if style == "twemoji" else "openmoji"
    return render(code, known, SIZE)
