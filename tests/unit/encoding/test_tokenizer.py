"""Token ids are open_clip's own, whichever library makes them."""

import string
import threading
from pathlib import Path

import numpy as np
import open_clip
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from support.small_models import model_cfg, write_model

from hotclip_server.encoding.architecture import OpenClipConfig
from hotclip_server.encoding.tokenizer import (
    PROBES,
    SETTINGS_FILE,
    BytePairTokenizer,
    FastTokenizer,
    LockedTokenizer,
    TextTokenizer,
    load_tokenizer,
    tokenizer_files,
)

WORDS = st.sampled_from(
    ["photo", "it's", "Köln", "猫", "👩‍👩‍👧", "&amp;", "<end>", "<start_of_text>", "_x_"]
)
TEXT = st.one_of(
    st.text(max_size=200),
    st.text(string.printable, max_size=200),
    st.lists(WORDS, max_size=60).map(" ".join),
)


def stored(folder: Path, config: OpenClipConfig, *, clips: bool = False) -> Path:
    """The tokenizer of `folder` as a version holds it."""
    target = folder / "stored"
    target.mkdir()
    (target / "open_clip_config.json").write_bytes(config.to_json())
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    if clips:
        tokenizer.tokenizer_mode = "clips"
    tokenizer_files(tokenizer, config, target)
    return target


@pytest.fixture(scope="module", params=["lower", "whitespace", "canonicalize"])
def byte_pairs(request: pytest.FixtureRequest) -> tuple[TextTokenizer, SimpleTokenizer]:
    ours, theirs = (SimpleTokenizer(context_length=20, clean=request.param) for _ in range(2))
    return BytePairTokenizer(ours), theirs


@pytest.fixture(scope="module", params=["siglip", "mini"])
def fast(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TextTokenizer, HFTokenizer]:
    folder = write_model(tmp_path_factory.mktemp("model"), request.param)
    config = OpenClipConfig(model=model_cfg(request.param), preprocess={})
    tokenizer = load_tokenizer(config, stored(folder, config))
    assert type(tokenizer) is FastTokenizer
    return tokenizer, open_clip.get_tokenizer(f"local-dir:{folder}")


@settings(max_examples=400, deadline=None)
@given(text=TEXT)
@example(text="x " * 500)
def test_byte_pairs_equal_open_clip(
    byte_pairs: tuple[TextTokenizer, SimpleTokenizer], text: str
) -> None:
    ours, theirs = byte_pairs
    assert np.array_equal(ours.ids(text), theirs([text])[0].numpy())


@settings(max_examples=400, deadline=None)
@given(text=TEXT)
@example(text="x " * 500)
def test_fast_equals_open_clip(fast: tuple[TextTokenizer, HFTokenizer], text: str) -> None:
    ours, theirs = fast
    assert np.array_equal(ours.ids(text), theirs([text])[0].numpy())


def test_batches_are_the_rows(fast: tuple[TextTokenizer, HFTokenizer]) -> None:
    ours, theirs = fast
    assert ours(list(PROBES)).equal(theirs(list(PROBES)))
    assert ours([]).shape == (0, ours.context_length)


def test_threads_agree(fast: tuple[TextTokenizer, HFTokenizer]) -> None:
    ours, _ = fast
    expected = [ours.ids(text) for text in PROBES]
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            for text, ids in zip(PROBES, expected, strict=True):
                if not np.array_equal(ours.ids(text), ids):
                    wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_mode_that_is_not_known_to_be_equal_keeps_open_clips(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "mini")
    config = OpenClipConfig(model=model_cfg("mini"), preprocess={})
    target = stored(folder, config, clips=True)
    assert not (target / SETTINGS_FILE).exists()
    tokenizer = load_tokenizer(config, target)
    assert type(tokenizer) is LockedTokenizer
    expected = open_clip.get_tokenizer(f"local-dir:{folder}")(["a photo"])[0].numpy()
    assert np.array_equal(tokenizer.ids("a photo"), expected)


def test_words_do_not_pile_up() -> None:
    own = SimpleTokenizer(context_length=20)
    tokenizer = BytePairTokenizer(own)
    before = tokenizer.ids("a photo of <end_of_text>")
    tokenizer._words |= {str(number): () for number in range(50_001)}
    tokenizer.ids("new " + "long" * 100)
    assert np.array_equal(tokenizer.ids("a photo of <end_of_text>"), before)
    assert len(own.cache) == 2
    assert len(tokenizer._words) < 10
