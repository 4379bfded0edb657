"""What people call the concepts, in six languages; German is not among them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from hotclip_examples.emoji import clean_name, concept_name, load_concepts
from hotclip_examples.emoji.render import drawing_key

LANGUAGES = ("es", "fr", "it", "pl", "pt")  # beside English
NAME_WEIGHT = 3  # a caption listed several times is drawn more often
KEYWORD_CAPTIONS = 4


def load_captions(modules: Path, seed: int = 0) -> dict[str, list[str]]:
    """Captions by code: a caption listed n times is drawn n times as often."""
    english = _rows(modules, "en")
    others = [_rows(modules, language) for language in LANGUAGES]
    captions = {}
    for concept in load_concepts():
        key = drawing_key(concept.code)
        name = concept_name(concept, "en")
        label, tags = english.get(key, (name, []))
        texts = [name] * NAME_WEIGHT + [label] * NAME_WEIGHT
        texts += _with_keywords(label, tags, random.Random(f"{seed} {concept.code}"))
        texts += [rows[key][0] for rows in others if key in rows]
        captions[concept.code] = texts
    return captions


def _with_keywords(name: str, tags: list[str], generator: random.Random) -> list[str]:
    """Half "name keyword", half two keywords without the name."""
    if len(tags) < 2:
        return [name]
    texts = []
    for number in range(KEYWORD_CAPTIONS):
        first, second = generator.sample(tags, 2)
        texts.append(f"{name} {first}" if number % 2 else f"{first} {second}")
    return texts


def _rows(modules: Path, language: str) -> dict[str, tuple[str, list[str]]]:
    """Name and keywords by concept key."""
    data = json.loads((modules / "emojibase-data" / language / "data.json").read_text("utf-8"))
    return {
        drawing_key(row["hexcode"]): (
            clean_name(row["label"]),
            [clean_name(tag) for tag in row.get("tags", [])],
        )
        for row in data
    }
