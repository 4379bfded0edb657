"""What is kept of a text that is longer than the context."""

import numpy as np
import open_clip
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from support.small_models import model_cfg, write_model

from hotclip_server.encoding.architecture import OpenClipConfig
from hotclip_server.encoding.byte_pairs import BytePairTokenizer
from hotclip_server.encoding.protocol import Truncate
from hotclip_server.encoding.tokenizer import (
    LockedTokenizer,
    TextTokenizer,
    load_tokenizer,
    tokenizer_files,
)
from hotclip_server.errors import InvalidArgument

CONTEXT = 16
SIMPLE = SimpleTokenizer(context_length=CONTEXT)
TEXT = st.one_of(
    st.text(max_size=60), st.lists(st.sampled_from("abcdef"), max_size=40).map(" ".join)
)


@pytest.fixture(scope="module", params=["siglip", "mini"])
def fast(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TextTokenizer, HFTokenizer]:
    folder = write_model(tmp_path_factory.mktemp("model"), request.param)
    config = OpenClipConfig(model=model_cfg(request.param), preprocess={})
    target = tmp_path_factory.mktemp("stored")
    own = open_clip.get_tokenizer(f"local-dir:{folder}")
    (target / "open_clip_config.json").write_bytes(config.to_json())
    tokenizer_files(own, config, target)
    return load_tokenizer(config, target), own


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
@example(text="a b c " * 30)
def test_byte_pairs(text: str) -> None:
    tokenizer = BytePairTokenizer(SIMPLE)
    tokens = [SIMPLE.sot_token_id, *SIMPLE.encode(text), SIMPLE.eot_token_id]
    kept = tokens if len(tokens) <= CONTEXT else tokens[:1] + tokens[-CONTEXT + 1 :]
    row = tokenizer.ids(text, Truncate.START)
    assert row.tolist() == kept + [0] * (CONTEXT - len(kept))
    refused_if_longer(tokenizer, text, len(tokens))


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
@example(text="a b c " * 30)
def test_hugging_face(fast: tuple[TextTokenizer, HFTokenizer], text: str) -> None:
    ours, theirs = fast
    theirs.tokenizer.truncation_side = "left"
    assert np.array_equal(ours.ids(text, Truncate.START), theirs([text])[0].numpy())
    theirs.tokenizer.truncation_side = "right"
    assert np.array_equal(ours.ids(text, Truncate.END), theirs([text])[0].numpy())
    refused_if_longer(ours, text, len(theirs.tokenizer(theirs.clean_fn(text)).input_ids))


def refused_if_longer(tokenizer: TextTokenizer, text: str, tokens: int) -> None:
    if tokens <= CONTEXT:
        assert np.array_equal(tokenizer.ids(text, Truncate.NONE), tokenizer.ids(text))
        return
    with pytest.raises(InvalidArgument) as caught:
        tokenizer.ids(text, Truncate.NONE)
    assert caught.value.reason == "TEXT_TOO_LONG"
    assert caught.value.violations[0].field == "text"
    assert f"has {tokens} tokens" in caught.value.message


@pytest.mark.parametrize("truncate", [Truncate.START, Truncate.NONE])
def test_a_tokenizer_that_only_cuts_the_end(truncate: Truncate) -> None:
    tokenizer = LockedTokenizer(SimpleTokenizer(context_length=CONTEXT, reduction_mask="simple"))
    with pytest.raises(InvalidArgument) as caught:
        tokenizer.ids("a b c", truncate)
    assert caught.value.reason == "TRUNCATE_UNSUPPORTED"
    assert caught.value.violations[0].field == "truncate"
