"""Byte pairs are merged as open_clip merges them."""

import string

from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from hotclip_server.encoding.merges import merged

SIMPLE = SimpleTokenizer()
SYMBOLS = st.sampled_from("abc")
RANKS = st.lists(
    st.tuples(st.text("abc", min_size=1, max_size=3), st.text("abc", min_size=1, max_size=3)),
    unique=True,
    max_size=30,
)


@settings(max_examples=500, deadline=None)
@given(word=st.one_of(st.text(string.ascii_lowercase, min_size=1), st.text("aeinst", min_size=1)))
@example(word="a" * 200)
@example(word="banana" * 20)
def test_words_of_clip(word: str) -> None:
    ours = merged([*word[:-1], word[-1] + "</w>"], SIMPLE.bpe_ranks)
    assert " ".join(ours) == SIMPLE.bpe(word)


@settings(max_examples=1000, deadline=None)
@given(word=st.lists(SYMBOLS, min_size=2, max_size=20), pairs=RANKS)
def test_any_ranks(word: list[str], pairs: list[tuple[str, str]]) -> None:
    """Also where a later pair makes what an earlier one could have been made of."""
    own = object.__new__(SimpleTokenizer)
    own.cache, own.bpe_ranks = {}, {pair: rank for rank, pair in enumerate(pairs)}
    # open_clip marks the last symbol; the mark is given a rank by no pair.
    expected = own.bpe("".join(word))
    assert " ".join(merged([*word[:-1], word[-1] + "</w>"], own.bpe_ranks)) == expected
