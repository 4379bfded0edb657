from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hotclip_server.training.errors import InvalidPairs
from hotclip_server.training.evaluate import Evaluator, Relevance, metrics_of
from hotclip_server.training.metrics import Compat
from hotclip_server.training.pairs import MemoryPairs, Pair
from tests.unit.training.tiny import colours, picture, tiny_clip


def test_names_and_both_directions():
    data = colours(8)
    metrics = Evaluator(tiny_clip(), data, k=3).evaluate(tiny_clip()).metrics
    for direction in ("clip-text-to-clip-vision", "clip-vision-to-clip-text"):
        assert metrics[f"{direction}_queries"] == 8
        assert 0 < metrics[f"{direction}_reciprocal_rank"] <= 1
        assert 0 <= metrics[f"{direction}_hit_at_k"] <= 1


def test_score_is_the_mean_of_both_directions():
    evaluation = Evaluator(tiny_clip(), colours(8)).evaluate(tiny_clip())
    ranks = [v for name, v in evaluation.metrics.items() if name.endswith("_reciprocal_rank")]
    assert evaluation.score == pytest.approx(np.mean(ranks))


@pytest.mark.parametrize(
    ("monitor", "sign"),
    [
        ("validation_loss", -1),
        ("clip-text-to-clip-vision_median_rank", -1),
        ("clip-vision-to-clip-text_ndcg_at_k", 1),
    ],
)
@pytest.mark.parametrize("compat", ["standard", "finetuner", "clip_benchmark"])
def test_a_higher_score_is_better_whatever_decides(monitor: str, sign: int, compat: Compat):
    data, clip = colours(8), tiny_clip()
    plain = metrics_of(Evaluator(clip, data, compat=compat).evaluate(clip))
    found = Evaluator(clip, data, monitor=monitor, compat=compat).evaluate(clip)
    assert found.score == sign * plain[monitor]
    assert metrics_of(found) == plain


def test_the_loss_may_be_of_other_pairs_which_nobody_searches():
    data, clip = colours(20), tiny_clip()
    queries, index, rated = (
        MemoryPairs(pairs, {pair.image_key: data.images[pair.image_key] for pair in pairs})
        for pairs in (data.pairs[:5], data.pairs[:12], data.pairs[10:])
    )
    found = Evaluator(clip, queries, index, rated=rated, loss_batch=4).evaluate(clip, examples=5)
    alone = Evaluator(clip, queries, index, loss_batch=4).evaluate(clip, examples=5)
    assert found.metrics == pytest.approx(alone.metrics, abs=1e-6)
    assert found.examples == alone.examples
    assert found.loss == pytest.approx(
        Evaluator(clip, rated, loss_batch=4).evaluate(clip).loss, abs=1e-6
    )
    assert found.loss != pytest.approx(alone.loss, abs=1e-3)
    with pytest.raises(InvalidPairs, match="no pairs"):
        Evaluator(clip, queries, index, rated=MemoryPairs([], {}))


class Counted(Sequence[Pair]):
    """Pairs that tell how often they were read, as of a file."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs
        self.reads = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number):
        self.reads += 1
        return self._pairs[number]


@pytest.mark.parametrize("own_index", [False, True])
def test_pairs_are_read_once(own_index: bool):
    data = colours(6)
    asked, found = Counted(data.pairs), Counted(data.pairs)
    queries, index = MemoryPairs(asked, data.images), MemoryPairs(found, data.images)
    evaluator = Evaluator(tiny_clip(), queries, index if own_index else None)
    evaluator.evaluate(tiny_clip())
    # One more, past the end, ends a pass.
    assert (asked.reads, found.reads) == (7, 7 * own_index)


def test_queries_are_searched_in_the_whole_index():
    data = colours(10)
    queries = MemoryPairs(data.pairs[:3], data.images)
    clip = tiny_clip()
    metrics = Evaluator(clip, queries, data).evaluate(clip).metrics
    assert metrics["clip-text-to-clip-vision_queries"] == 3
    texts = torch.nn.functional.normalize(
        clip.model.encode_text(clip.tokenizer([pair.text for pair in data.pairs[:3]])), dim=-1
    )
    import io

    from PIL import Image

    images = torch.stack(
        [clip.pixels(Image.open(io.BytesIO(data.images[pair.image_key]))) for pair in data.pairs]
    )
    features = clip.model.encode_image(clip.normalise(images.float() / 255))
    scores = (texts @ torch.nn.functional.normalize(features, dim=-1).T).detach().numpy()
    ranks = [1 + int((row > row[i]).sum()) for i, row in enumerate(scores)]
    assert metrics["clip-text-to-clip-vision_mean_rank"] == pytest.approx(np.mean(ranks), abs=0.5)


def test_group_and_same_image_are_relevant():
    images = {name: picture((10 * i, 90, 200 - 10 * i)) for i, name in enumerate("abcd")}
    pairs = [
        Pair("a", "first", "g"),
        Pair("b", "second", "g"),
        Pair("c", "third"),
        Pair("c", "fourth"),
        Pair("d", "fifth"),
    ]
    clip = tiny_clip()
    metrics = Evaluator(clip, MemoryPairs(pairs, images), k=4).evaluate(clip).metrics
    # k is the whole index: 2 + 2 relevant images of the group's texts, 1 of each other text
    assert metrics["clip-text-to-clip-vision_precision_at_k"] == pytest.approx(7 / 5 / 4)
    assert metrics["clip-vision-to-clip-text_queries"] == 4


def test_nan_embedding_fails():
    clip = tiny_clip()
    evaluator = Evaluator(clip, colours(4))
    with torch.no_grad():
        clip.model.text_projection.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        evaluator.evaluate(clip)


def test_nothing_to_evaluate():
    with pytest.raises(InvalidPairs, match="no pairs"):
        Evaluator(tiny_clip(), MemoryPairs([], {}))


def relevance(queries: list[Pair], index: Sequence[Pair] = ()) -> Relevance:
    pairs = [*queries, *index]
    texts = {text: i for i, text in enumerate(dict.fromkeys(pair.text for pair in pairs))}
    images = {key: i for i, key in enumerate(dict.fromkeys(pair.image_key for pair in pairs))}
    return Relevance(queries, index, texts, images)


def test_scores_are_gains_and_kin_counts_whole():
    found = relevance(
        [
            Pair("a", "first", "g", score=0.25),
            Pair("b", "second", "g", label="shoe"),
            Pair("c", "third", label="shoe"),
            Pair("a", "second", score=0.0),
            Pair("d", "fourth", score=0.5),
            Pair("d", "fourth", score=0.75),
        ]
    )
    gains = [found.images_of(text).tolist() for text in range(4)]
    assert gains == [[0.25, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0.75]]
    backwards = np.array([found.texts_of(image) for image in range(4)])
    assert np.array_equal(backwards.T, gains)


def test_queries_have_the_word_before_the_index():
    found = relevance(
        [Pair("a", "first", score=0.5), Pair("b", "first", score=0)],
        [Pair("a", "first"), Pair("b", "first"), Pair("c", "first")],
    )
    assert found.images_of(0).tolist() == [0.5, 0, 1]


def test_a_group_and_a_label_of_one_name_are_two_things():
    found = relevance([Pair("a", "first", "x"), Pair("b", "second", label="x")])
    assert found.images_of(0).tolist() == [1, 0]


def test_equal_items_are_a_tie():
    clip = tiny_clip()
    with torch.no_grad():
        clip.model.text_projection.zero_().add_(1)
    data = colours(8)
    metrics = Evaluator(clip, data, compat="finetuner", k=2).evaluate(clip).metrics
    assert metrics["clip-vision-to-clip-text_hit_at_k"] == pytest.approx(2 / 8)
    assert metrics["clip-vision-to-clip-text_mean_rank"] == pytest.approx(4.5)
