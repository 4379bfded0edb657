"""What a step sees: captions, negatives, classes, prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hotclip_server.training.config import MetricLossConfig, TrainConfig
from hotclip_server.training.dataset import GROUP, IMAGE, LABEL, TEXT, TrainingSet, classes_of
from hotclip_server.training.pairs import MemoryPairs, Pair
from hotclip_server.training.prompts import Prompted, count_pairs
from hotclip_server.training.sampler import class_batches
from tests.unit.training.tiny import picture, tiny_clip

IMAGES = {name: picture((40 * number, 9, 200)) for number, name in enumerate("abcde")}


def test_a_pairs_own_negatives_come_along():
    pairs = [
        Pair("a", "x", "g", negative_texts=("y", "w1", "w2"), negative_images=("e", "b")),
        Pair("b", "y", "h", "kind", 0.25),
        Pair("c", "z"),
    ]
    training_set = TrainingSet(tiny_clip(), MemoryPairs(pairs, IMAGES), negatives=3)
    seen = training_set.captions(0, 0)
    batch = training_set.batch(np.array([0, 1]), seen)
    assert batch.pairs == 2
    # "y" and "b" are in the batch anyway.
    assert (len(batch.images), len(batch.tokens)) == (3, 4)
    assert torch.equal(batch.tokens[2:], tiny_clip().tokenizer(["w1", "w2"]))
    assert batch.image_keys[:, 2].tolist() == [3, -1, -1, -1]
    assert (batch.text_keys[[IMAGE, GROUP, LABEL], 2:] == -1).all()
    assert len({*batch.text_keys[TEXT].tolist()}) == 4
    assert batch.scores.tolist() == [1.0, 0.25]
    # A negative that is a pair of the set has its group and label.
    alone = training_set.batch(np.array([0, 2]), seen)
    assert alone.image_keys[[IMAGE, GROUP, LABEL], 2].tolist() == [1, 1, 0]

    without = TrainingSet(tiny_clip(), MemoryPairs(pairs, IMAGES), negatives=0)
    batch = without.batch(np.array([0, 1]), without.captions(0, 0))
    assert len(batch.images) == len(batch.tokens) == 2


def test_one_negative_of_many_is_another_in_another_epoch():
    pairs = [Pair("a", "x", negative_texts=tuple(f"w{i}" for i in range(5))), Pair("b", "y")]
    training_set = TrainingSet(tiny_clip(), MemoryPairs(pairs, IMAGES), negatives=1)
    seen = set()
    for epoch in range(40):
        batch = training_set.batch(np.array([1, 0]), training_set.captions(3, epoch))
        assert batch.text_keys.shape == (4, 3)
        seen.add(int(batch.text_keys[TEXT, 2]))
    assert len(seen) == 5


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=60), st.sampled_from([2, 4]), st.integers(0, 9)
)
def test_classes_are_drawn_together(classes: list[int], per_class: int, epoch: int) -> None:
    batches = class_batches(np.array(classes, dtype=np.int64), 8, per_class, 1, epoch)
    numbers = np.concatenate(batches)
    assert sorted(numbers.tolist()) == list(range(len(classes)))
    assert max(map(len, batches)) <= 8
    if len(classes) % 8 == 0:
        for batch in batches[: sum(classes.count(c) // per_class for c in set(classes)) // 8]:
            drawn = [classes[i] for i in batch]
            assert all(drawn.count(kind) >= per_class for kind in drawn)


def test_a_class_is_a_label_then_a_group_then_a_text():
    keys = torch.tensor([[0, 1, 2, 3, 4], [7, 7, 8, 8, 9], [-1, -1, 5, 5, -1], [-1, -1, 6, -1, 6]])
    classes = classes_of(keys).tolist()
    assert classes[0] == classes[1]
    assert classes[2] == classes[4]
    assert len(set(classes)) == 3


def test_batches_of_a_metric_loss_hold_several_of_a_class():
    images = {f"i{n}": picture((n, 9, 200)) for n in range(32)}
    pairs = [Pair(f"i{n}", f"t{n}", label=f"k{n % 8}") for n in range(32)]
    training_set = TrainingSet(tiny_clip(), MemoryPairs(pairs, images))
    config = TrainConfig(
        batch_size=8, loss="metric", metric_loss=MetricLossConfig(name="TripletMarginLoss")
    )
    for batch in training_set.batches(config, 0):
        assert sorted(np.bincount(batch % 8).tolist())[-2:] == [4, 4]


def test_labelled_images_have_a_text_for_each_prompt():
    pairs = [Pair("a", "", label="cat"), Pair("b", "", label="cat"), Pair("c", "x", label="dog")]
    source = MemoryPairs(pairs, IMAGES)
    made = Prompted(source, ("a photo of {label}", "{label}"))
    assert [(p.image_key, p.text, p.label) for p in made.pairs] == [
        ("a", "a photo of cat", "cat"),
        ("a", "cat", "cat"),
        ("b", "a photo of cat", "cat"),
        ("b", "cat", "cat"),
        ("c", "x", "dog"),
    ]
    assert made.image_bytes("a") == IMAGES["a"]
    assert count_pairs(made.pairs) == 3
    training_set = TrainingSet(tiny_clip(), made)
    batch = training_set.batch(np.arange(3), training_set.captions(0, 0))
    assert batch.text_keys[LABEL].tolist() == [0, 0, 1]
    assert replace(pairs[0], text="a photo of cat") in made.pairs
