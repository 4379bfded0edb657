"""1,906 emoji concepts with names in two languages and drawings in two styles, from PyPI."""

from hotclip_examples.emoji.concepts import Concept, load_concepts
from hotclip_examples.emoji.names import clean_name, concept_name
from hotclip_examples.emoji.render import Style, render, render_svg
from hotclip_examples.emoji.sheet import draw_sheet
from hotclip_examples.emoji.task import EmojiPair, EmojiTask, emoji_task, pair_image

__all__ = [
    "Concept",
    "EmojiPair",
    "EmojiTask",
    "Style",
    "clean_name",
    "concept_name",
    "draw_sheet",
    "emoji_task",
    "load_concepts",
    "pair_image",
    "render",
    "render_svg",
]
