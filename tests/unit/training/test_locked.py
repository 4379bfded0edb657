"""What is not trained is encoded once, and the run ends with the same weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from hotclip_server.training import locked
from hotclip_server.training.chunking import PROBED
from hotclip_server.training.clip import Clip
from hotclip_server.training.config import AugmentConfig, TrainConfig
from hotclip_server.training.evaluate import Evaluator
from hotclip_server.training.events import Chunk, Step, TrainEvent
from hotclip_server.training.pairs import MemoryPairs
from hotclip_server.training.trainer import Trainer
from tests.unit.training.tiny import colours, picture, tiny_clip, weights

PAIRS = 12
CONFIG = TrainConfig(
    epochs=3, batch_size=5, optimizer="sgd", learning_rate=1e-2, augment=AugmentConfig(crop=(1, 1))
)
LIT = replace(CONFIG, method="lit")


@dataclass(frozen=True)
class Counted(MemoryPairs):
    """Pairs, some with a negative image that is no pair, that count what is read."""

    read: Counter[str] = field(default_factory=Counter)

    def image_bytes(self, image_key: str) -> bytes:
        self.read[image_key] += 1
        return super().image_bytes(image_key)


def counted() -> Counted:
    plain = colours(PAIRS)
    first, *others = plain.pairs
    pairs = [replace(first, negative_images=("wrong",), negative_texts=("no name",)), *others]
    return Counted(pairs, {**plain.images, "wrong": picture((1, 2, 3))})


def rows_of(module: nn.Module) -> list[int]:
    """How many rows each pass has, from now on."""
    rows: list[int] = []
    module.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    return rows


def run(clip: Clip, config: TrainConfig, data: MemoryPairs) -> list[TrainEvent]:
    return list(Trainer(clip, data, config, image_budget_bytes=0).run())


@pytest.mark.parametrize(
    "config", [LIT, replace(CONFIG, lock_image=True), replace(CONFIG, lock_text=True)]
)
@pytest.mark.parametrize("preserve", [0.0, 1.0])
@pytest.mark.parametrize("chunk_size", [0, 2])
def test_the_weights_are_those_of_encoding_in_every_step(
    config: TrainConfig, preserve: float, chunk_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, preserve=preserve, chunk_size=chunk_size)
    known, plain = tiny_clip(), tiny_clip()
    events = run(known, config, counted())
    monkeypatch.setattr(locked, "BUDGET_BYTES", 0)
    run(plain, config, counted())
    base, expected = weights(tiny_clip()), weights(plain)
    moved = 0.0
    for name, tensor in weights(known).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)
        moved = max(moved, float((tensor - base[name]).abs().max()))
    assert moved > 1e-3
    assert isinstance(events[1], Chunk), "nobody else may go first while all is encoded"


def test_an_image_is_decoded_and_encoded_once() -> None:
    clip, data = tiny_clip(), counted()
    rows = rows_of(clip.model.visual)
    run(clip, LIT, data)
    assert data.read == Counter([*data.images])
    assert sum(rows) == PROBED + PAIRS + 1


def test_a_text_is_encoded_once() -> None:
    clip, data = tiny_clip(), counted()
    rows = rows_of(clip.model.transformer)
    run(clip, replace(CONFIG, lock_text=True), data)
    assert sum(rows) == PROBED + PAIRS + 1


@pytest.mark.parametrize(
    "changes",
    [{"augment": AugmentConfig(crop=(0.9, 1.0))}, {"max_steps": 2}, {"method": "full"}],
    ids=["augmented", "part of the data", "trained"],
)
def test_what_changes_or_is_hardly_seen_is_encoded_in_its_step(changes: dict[str, object]) -> None:
    clip = tiny_clip()
    events = run(clip, replace(LIT, **changes), counted())
    assert isinstance(events[1], Step)


def test_a_run_that_goes_on_has_the_same_bits() -> None:
    whole = tiny_clip()
    run(whole, LIT, counted())
    first, clip = Trainer(tiny_clip(), counted(), LIT), tiny_clip()
    second = Trainer(clip, counted(), LIT)
    events = first.run()
    for event in events:
        if isinstance(event, Step) and event.step == 4:
            break
    second.restore(first.snapshot())
    events.close()
    list(second.run())
    expected = weights(whole)
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(clip).items())


def test_evaluations_of_a_locked_tower_share_its_vectors() -> None:
    clip, data = tiny_clip(), colours()
    evaluator = Evaluator(clip, data, image_locked=True)
    rows = rows_of(clip.model.visual)
    first = evaluator.evaluate(clip)
    with torch.no_grad():
        _disturb(clip.model.token_embedding.weight)
    second = evaluator.evaluate(clip)
    assert sum(rows) == len(data.images)
    assert second != first
    assert second == Evaluator(clip, data).evaluate(clip)


def _disturb(tensor: Tensor) -> None:
    tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
