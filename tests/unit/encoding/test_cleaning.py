"""Cleaning changes nothing that open_clip's would not, and is seldom done in full."""

import sys
import unicodedata

import emoji
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

from hotclip_server.encoding.byte_pairs import BytePairTokenizer
from hotclip_server.encoding.cleaning import leaves_alone, quick_clean


def _words(text: str) -> list[str]:
    return text.split(" ")


KINDS = ("lower", "whitespace", "canonicalize")
MOJIBAKE = _words("Ã¼ â€™ Ã Â œ ×² à² вЂ ГўВЂВ. [ÂÃ]Â ØÙ ‚Ä √± β€ ā€ Å ‡ ¬ ¤")
FTFY = _words("ﬁ ĳ ŉ Ａ ｶﾞ ﾊﾟ ‘ ’ “ ” ʼ e\u0301 \u0301 \u1100\u1161 각 \u212b \ufeff \ufffc \u206a")
CONTROL = [*"\r\n\t\x0b\x0c\x1b\x1c\x1f\x00\x7f\x80\x85\x9f\xa0\xad\u2028\u3000", "\x1b[31m"]
HTML = _words("&amp; &amp;lt; &lt & &#233; &EACUTE; <b> _ 's 'S <start_of_text>")
LETTERS = _words("a Z 1 ² ½ Ⅷ İ ß ſ µ … – 😀 👩\u200d👧 🏳️\u200d🌈 猫 кот ñ Grüße")
SPECIAL = st.sampled_from([*MOJIBAKE, *FTFY, *CONTROL, *HTML, *LETTERS, " ", "  "])
TEXT = st.one_of(
    st.text(max_size=40),
    st.lists(SPECIAL, max_size=12).map("".join),
    st.text(st.characters(max_codepoint=0x24F), max_size=30),
    st.lists(st.one_of(SPECIAL, st.characters()), max_size=12).map("".join),
)
LANGUAGES = ["en", "de", "es", "ja", "ru", "ar", "ko"]


@settings(max_examples=700, deadline=None)
@given(text=TEXT)
@example(text="\x1b[31mred")
@example(text="\x1ca\x1c")
@example(text="a\x1fb")
@example(text="\nÃ x")
def test_equal_to_open_clip(text: str) -> None:
    for kind in KINDS:
        own = get_clean_fn(kind)
        assert quick_clean(own)(text) == own(text)


@pytest.mark.parametrize("kind", KINDS)
def test_every_character(kind: str) -> None:
    own = get_clean_fn(kind)
    clean = quick_clean(own)
    alone = 0
    for code in range(0, sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in ("Cn", "Co", "Cs") or 0x20000 <= code < 0xE0000:
            continue
        text = f"x{chr(code)} y"
        if leaves_alone(text):
            alone += 1
            assert clean(text) == own(text), hex(code)
    assert alone > 50_000


def test_an_unknown_cleaning_is_kept() -> None:
    assert quick_clean(str.upper) is str.upper


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a cat, 2 dogs & more"[:23],
        "Ein Hund läuft über die grüne Wiese",
        "猫が好きです",
        "😀 кошка",
    ],
)
def test_usual_texts_are_left_alone(text: str) -> None:
    assert leaves_alone(text)


def test_names_of_emoji() -> None:
    emoji.config.load_language(LANGUAGES)
    names = [
        symbol[language].strip(":").replace("_", " ")
        for symbol in emoji.EMOJI_DATA.values()
        for language in LANGUAGES
        if language in symbol
    ]
    assert len(names) > 20_000
    own, tokenizer = SimpleTokenizer(), BytePairTokenizer(SimpleTokenizer())
    for name in names[::3]:
        assert np.array_equal(tokenizer.ids(name), own([name])[0].numpy()), name
    assert np.mean([leaves_alone(name) for name in names]) > 0.9
