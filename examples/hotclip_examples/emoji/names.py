"""Names of concepts as a person would type them into a search box."""

from __future__ import annotations

import functools
import re
from typing import Literal

import emoji

from hotclip_examples.emoji.concepts import Concept

Language = Literal["en", "de"]

_PUNCTUATION = re.compile(r"[\s_:,“”\"()]+")


@functools.cache
def _loaded(language: Language) -> Language:
    emoji.config.load_language(language)
    return language


def concept_name(concept: Concept, language: Language) -> str:
    """Lower-case plain words: ":goldmedaille:" becomes "goldmedaille"."""
    return clean_name(emoji.EMOJI_DATA[concept.emoji][_loaded(language)])


def clean_name(raw: str) -> str:
    """Words of a short name such as ":flag_in_hole:", lower-case, single spaces."""
    return _PUNCTUATION.sub(" ", raw.replace("’", "'").replace("-", " ")).strip().lower()
