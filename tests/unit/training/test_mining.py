"""Hard negatives: which ones are found, that they are wrong, and that a run with them goes on."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from hotclip_server.training.config import AugmentConfig, MiningConfig, TrainConfig
from hotclip_server.training.dataset import IMAGE, TEXT, TrainingSet
from hotclip_server.training.events import NegativesMined, Step
from hotclip_server.training.mining import Mined, mine
from hotclip_server.training.pairs import MemoryPairs, Pair
from hotclip_server.training.relations import Relations
from hotclip_server.training.trainer import Trainer
from tests.unit.training.tiny import colours, picture, tiny_clip, weights

T = TypeVar("T")
CONFIG = TrainConfig(
    epochs=4,
    batch_size=5,
    learning_rate=1e-3,
    augment=AugmentConfig(crop=(1.0, 1.0)),
    mining=MiningConfig(count=1, pool=3, every=2),
)
NUMBERS = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(-1, 2), st.integers(-1, 1))


def result(work: Generator[object, None, T]) -> T:
    """What it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            value: T = end.value
            return value


def related(rows: Sequence[tuple[int, ...]], pair: int) -> set[int]:
    """Pairs with which this one has an image, a text, a group or a label in common."""
    own = rows[pair]
    return {
        other
        for other, row in enumerate(rows)
        if any(a == b and a >= 0 for a, b in zip(row, own, strict=True))
    }


def relations_of(rows: Sequence[tuple[int, ...]]) -> Relations:
    images, texts, groups, labels = np.array(rows, dtype=np.int64).T
    return Relations(images, texts, (groups, labels))


@given(st.lists(NUMBERS, min_size=1, max_size=12), st.data())
def test_what_belongs_together(rows: list[tuple[int, ...]], data: st.DataObject) -> None:
    relations = relations_of(rows)
    some = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
    kin = set().union(*(related(rows, pair) for pair in some))
    found = relations.images_of(np.array(some)), relations.texts_of(np.array(some))
    assert found[0].tolist() == sorted({rows[pair][0] for pair in kin})
    assert found[1].tolist() == sorted({rows[pair][1] for pair in kin})


@given(
    st.lists(NUMBERS, min_size=1, max_size=10),
    st.integers(0, 99),
    st.sampled_from([0.5, 0.95, 1.0]),
    st.integers(1, 7),
)
def test_the_hardest_that_are_wrong_and_not_too_near(
    rows: list[tuple[int, ...]], seed: int, ceiling: float, pool: int
) -> None:
    """Against the rule, pair by pair."""
    generator = torch.Generator().manual_seed(seed)
    images = normalize(torch.randn(6, 4, generator=generator, dtype=torch.float64))
    texts = normalize(torch.randn(5, 4, generator=generator, dtype=torch.float64))
    config = MiningConfig(pool=pool, ceiling=ceiling)
    # Of any length: the direction counts.
    found = result(mine(3 * images, 0.5 * texts, relations_of(rows), config))
    for pair, (image, text, *_) in enumerate(rows):
        own = float(images[image] @ texts[text])
        most = own - (1 - ceiling) * abs(own)
        kin = related(rows, pair)
        for query, index, place, numbers in (
            (texts[text], images, 0, found.images[pair]),
            (images[image], texts, 1, found.texts[pair]),
        ):
            scores = (index @ query).tolist()
            taken = {rows[other][place] for other in kin}
            wrong = [n for n in range(len(index)) if n not in taken and scores[n] <= most + 1e-12]
            wrong.sort(key=lambda n: -scores[n])
            expected = [*wrong, *[-1] * pool][:pool]
            assert numbers.tolist() == expected


def test_mined_ones_come_with_their_pair_and_belong_to_no_row() -> None:
    images = {name: picture((40 * number, 9, 200)) for number, name in enumerate("abcde")}
    pairs = [
        Pair("a", "x", "g"),
        Pair("b", "y", "g"),
        Pair("c", "z"),
        Pair("d", "w"),
        Pair("d", "v"),
    ]
    training_set = TrainingSet(tiny_clip(), MemoryPairs(pairs, images))
    nothing = torch.full((5, 2), -1)
    mined_images, mined_texts = nothing.clone(), nothing.clone()
    mined_images[0] = torch.tensor([2, 3])  # c, d
    mined_texts[2] = torch.tensor([4, 1])  # "v" and "y", which is of the first row's group
    training_set.use(Mined(images=mined_images, texts=mined_texts), 2)
    drawn = training_set.captions(0, 0)
    batch = training_set.batch(np.array([0, 2]), drawn)
    assert batch.pairs == 2
    # c is a pair of this batch; "y" belongs to the first row.
    assert batch.image_keys[IMAGE].tolist() == [0, 2, 3]
    assert batch.text_keys[TEXT].tolist() == [0, 2, 4]
    assert torch.equal(batch.tokens[2], tiny_clip().tokenizer(["v"])[0])
    training_set.use(None, 0)
    assert len(training_set.batch(np.array([0, 2]), drawn).images) == 2


class Catalogue(MemoryPairs):
    """Images besides those of the pairs, and one that is theirs."""

    keys = ("image0", "other0", "other1", "other2")


def catalogue() -> Catalogue:
    return Catalogue([], {key: picture((250, 10 * n, 0)) for n, key in enumerate(Catalogue.keys)})


def test_a_run_looks_for_negatives_now_and_then_and_goes_on_to_the_same_bits() -> None:
    whole = tiny_clip()
    events = list(Trainer(whole, colours(), CONFIG, candidates=catalogue()).run())
    found = [event for event in events if isinstance(event, NegativesMined)]
    assert [event.epoch for event in found] == [1, 3]
    assert all(event.pairs > 0 for event in found)
    plain = tiny_clip()
    list(Trainer(plain, colours(), replace(CONFIG, mining=None)).run())
    expected = weights(whole)
    assert any(not torch.equal(expected[n], tensor) for n, tensor in weights(plain).items())

    for last in (2, 4, 8):  # within an epoch, and within one that uses those of the one before
        first = Trainer(tiny_clip(), colours(), CONFIG, candidates=catalogue())
        run = first.run()
        for event in run:
            if isinstance(event, Step) and event.step == last:
                break
        clip = tiny_clip()
        second = Trainer(clip, colours(), CONFIG, candidates=catalogue())
        kept = first.snapshot()
        assert kept.mined["images"].shape == (12, 3)
        second.restore(kept)
        run.close()
        list(second.run())
        assert all(torch.equal(expected[n], tensor) for n, tensor in weights(clip).items())


@pytest.mark.parametrize("method", ["full", "lit"])
@pytest.mark.parametrize("preserve", [0.0, 1.0])
def test_images_of_a_catalogue_are_among_them(method: str, preserve: float) -> None:
    config = replace(
        CONFIG, method=method, preserve=preserve, mining=MiningConfig(pool=16, ceiling=1.0)
    )
    trainer = Trainer(tiny_clip(), colours(), config, candidates=catalogue())
    run = trainer.run()
    for event in run:
        if isinstance(event, NegativesMined):
            break
    found = trainer.snapshot().mined["images"]
    run.close()
    # 12 of the pairs; the catalogue's "image0" is one of them.
    assert int(found.max()) in (12, 13, 14)


def test_more_rows_than_the_batch_still_run_at_once() -> None:
    """Negatives are known when it is decided how much of a batch runs together."""
    trainer = Trainer(tiny_clip(), colours(), CONFIG, free_bytes=lambda: 1 << 40)
    events = list(trainer.run())
    assert events[0].chunk_size == 2 * 5
