from __future__ import annotations

import base64
import io
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from hotclip import Example
from hotclip_examples.emoji import (
    clean_name,
    concept_name,
    draw_sheet,
    emoji_task,
    load_concepts,
    pair_image,
    render,
)
from hotclip_examples.emoji.concepts import select_concepts
from hotclip_examples.emoji.sheet import CELL, GAP, OTHER, RIGHT, SHOWN, TEXT_WIDTH


def test_the_committed_list_is_what_the_criterion_selects():
    assert len(load_concepts()) == 1906
    assert list(load_concepts()) == select_concepts()


@pytest.mark.parametrize(
    ("code", "english", "german"),
    [
        ("1F947", "1st place medal", "goldmedaille"),
        ("1F355", "pizza", "pizza"),
        ("1F573-FE0F", "hole", "loch"),
    ],
)
def test_names_are_plain_lower_case_words(code: str, english: str, german: str):
    concept = {concept.code: concept for concept in load_concepts()}[code]
    assert concept_name(concept, "en") == english
    assert concept_name(concept, "de") == german


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_concept_has_its_own_clean_name(language):
    names = [concept_name(concept, language) for concept in load_concepts()]
    assert len(set(names)) == 1906
    for name in names:
        assert name == clean_name(name)
        assert name
        assert not set("_:") & set(name)


@pytest.mark.parametrize("style", ["openmoji", "twemoji"])
def test_drawings_are_png_on_white_and_cached(style, tmp_path: Path):
    png = render("1F415", style, 48, tmp_path)
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (48, 48)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert len(image.convert("RGB").getcolors(48 * 48) or []) > 3
    [file] = tmp_path.rglob("*.png")
    file.write_bytes(b"from the cache")
    assert render("1F415", style, 48, tmp_path) == b"from the cache"


def test_unknown_concept_is_an_error():
    with pytest.raises(KeyError):
        render("0000", "openmoji", 32)


def test_task_holds_30_percent_of_openmoji_out():
    task = emoji_task("de")
    assert len(task.index) == 1906
    assert len(task.queries) == 572
    assert len(task.train) == 1906 + 1334
    trained = {pair.image_key for pair in task.train}
    assert not trained & {pair.image_key for pair in task.queries}
    assert {pair.style for pair in task.index} == {"openmoji"}
    english = emoji_task("en")
    assert [pair.concept for pair in english.queries] == [pair.concept for pair in task.queries]
    assert emoji_task("de", seed=1).queries != task.queries


def test_a_small_task_is_a_sample():
    task = emoji_task("de", concepts=40)
    assert (len(task.index), len(task.queries), len(task.train)) == (40, 12, 68)
    with Image.open(io.BytesIO(pair_image(task.queries[0], 24))) as image:
        assert image.size == (24, 24)
    with pytest.raises(ValueError, match="between 2 and 1906"):
        emoji_task("de", concepts=1)


def test_a_sheet_frames_what_is_right():
    images = {"r": b"red", "b": b"blue"}
    found = Example("größe < 3", before=("b", "r"), after=("r",), relevant=("r",))
    sheet = ElementTree.fromstring(draw_sheet([found, found], images))
    name = "{http://www.w3.org/2000/svg}"
    assert sheet.get("height") == str(3 * (CELL + GAP))
    assert [t.text for t in sheet.iter(f"{name}text")][3:] == ["größe < 3"] * 2
    shown = [base64.b64decode(i.get("href").partition(",")[2]) for i in sheet.iter(f"{name}image")]
    assert shown == [b"blue", b"red", b"red"] * 2
    framed = [rect.get("stroke") for rect in sheet.iter(f"{name}rect")][1:]
    assert framed == [OTHER, RIGHT, RIGHT] * 2
    after = TEXT_WIDTH + SHOWN * (CELL + GAP) + 2 * GAP
    lefts = [int(image.get("x")) for image in sheet.iter(f"{name}image")]
    assert lefts == [TEXT_WIDTH, TEXT_WIDTH + CELL + GAP, after] * 2
