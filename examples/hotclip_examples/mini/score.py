"""How the model does on what it never saw: OpenMoji, in colour and as line art, and German."""

from __future__ import annotations

from pathlib import Path

from hotclip_examples.emoji import concept_name, load_concepts, render, render_svg
from hotclip_examples.emoji.names import Language
from hotclip_examples.emoji.render import drawing_key
from hotclip_examples.mini.drawings import SIZE
from hotclip_server.training.clip import Clip
from hotclip_server.training.evaluate import TEXT_TO_IMAGE, Evaluator
from hotclip_server.training.pairs import MemoryPairs, Pair

MEASURES = ("hit_at_1", "hit_at_10", "reciprocal_rank")


class HeldOut:
    """Names searched among all 1,906 drawings of a set that was not trained on."""

    def __init__(self, clip: Clip, modules: Path, cache: Path) -> None:
        colour = {c.code: render(c.code, "openmoji", SIZE, cache) for c in load_concepts()}
        line_art = _line_art(modules)
        self._evaluators = {
            "openmoji_colour_english": _evaluator(clip, colour, "en"),
            "openmoji_line_art_english": _evaluator(clip, line_art, "en"),
            "openmoji_colour_german": _evaluator(clip, colour, "de"),
        }

    def scores(self, clip: Clip) -> dict[str, float]:
        """For example "openmoji_colour_english_hit_at_10"."""
        found = {}
        for name, evaluator in self._evaluators.items():
            metrics = evaluator.evaluate(clip).metrics
            for measure in MEASURES:
                found[f"{name}_{measure}"] = round(metrics[f"{TEXT_TO_IMAGE}_{measure}"], 4)
        return found


def _evaluator(clip: Clip, drawings: dict[str, bytes], language: Language) -> Evaluator:
    pairs = [
        Pair(concept.code, concept_name(concept, language), group=concept.code)
        for concept in load_concepts()
        if concept.code in drawings
    ]
    return Evaluator(clip, MemoryPairs(pairs, drawings))


def _line_art(modules: Path) -> dict[str, bytes]:
    folder = modules / "openmoji" / "black" / "svg"
    files = {drawing_key(file.stem): file for file in folder.glob("*.svg")}
    return {
        concept.code: render_svg(files[drawing_key(concept.code)].read_text("utf-8"), SIZE)
        for concept in load_concepts()
    }
