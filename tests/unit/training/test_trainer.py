from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from hotclip_server.training.clip import Clip
from hotclip_server.training.config import CROPS, AugmentConfig, TrainConfig
from hotclip_server.training.errors import InvalidPairs, TrainingDiverged
from hotclip_server.training.evaluate import Evaluator
from hotclip_server.training.events import (
    Chunk,
    ChunkHalved,
    EpochEnd,
    RolledBack,
    SkippedStep,
    Started,
    Step,
    TrainEvent,
)
from hotclip_server.training.pairs import MemoryPairs, Pair
from hotclip_server.training.progress import Snapshot
from hotclip_server.training.sampler import epoch_batches
from hotclip_server.training.selection import is_text
from hotclip_server.training.trainer import Trainer, train
from tests.unit.training.tiny import colours, picture, tiny_clip, weights

FAST = TrainConfig(
    epochs=3, batch_size=6, learning_rate=2e-3, augment=AugmentConfig(crop=(1.0, 1.0))
)


def test_loss_falls_and_retrieval_gets_better():
    clip, data = tiny_clip(), colours()
    evaluator = Evaluator(clip, data)
    before = evaluator.evaluate(clip).score
    events = list(train(clip, data, replace(FAST, epochs=60)))
    losses = [event.mean_loss for event in events if isinstance(event, EpochEnd)]
    assert losses[-1] < 0.5 * losses[0]
    assert evaluator.evaluate(clip).score > max(0.9, before)


def test_events_come_in_order_and_count_every_step():
    events = list(train(tiny_clip(), colours(10), FAST))
    assert events[0] == Started(steps=6, epochs=3, images=10, pairs=10, done=0, chunk_size=6)
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.step for step in steps] == list(range(1, 7))
    assert [step.epoch for step in steps] == [1, 1, 2, 2, 3, 3]
    assert [type(event) for event in events[1:4]] == [Step, Step, EpochEnd]
    assert all(math.isfinite(s.loss) and s.grad_norm > 0 and s.logit_scale > 1 for s in steps)


def test_max_steps_ends_inside_an_epoch():
    events = list(train(tiny_clip(), colours(12), replace(FAST, max_steps=3)))
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3]
    assert isinstance(events[-1], EpochEnd)
    assert events[-1].step == events[-1].steps == 3


def test_nothing_happens_between_steps():
    clip = tiny_clip()
    run = train(clip, colours(), FAST)
    assert isinstance(next(run), Started)
    next(run)
    held = weights(clip)
    assert all(torch.equal(held[name], tensor) for name, tensor in weights(clip).items())
    run.close()
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert not clip.model.training


@pytest.mark.parametrize("resnet", [False, True])
def test_same_seed_gives_the_same_weights(resnet: bool):
    changing = AugmentConfig(crop=(0.9, 1.0), hue=0.5, outline=0.5)
    config = replace(FAST, epochs=2, ema=0.5, augment=changing)
    ends = []
    for noise in (1, 2):
        clip = tiny_clip(resnet=resnet)
        torch.manual_seed(noise)  # what others draw from the global stream must not matter
        for _ in train(clip, colours(), config):
            torch.rand(noise)
        ends.append(weights(clip))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    other = tiny_clip(resnet=resnet)
    list(train(other, colours(), replace(config, seed=7)))
    assert not torch.equal(weights(other)["text_projection"], ends[0]["text_projection"])


@pytest.mark.parametrize("resnet", [False, True])
def test_locked_image_tower_does_not_change(resnet: bool):
    clip = tiny_clip(resnet=resnet)
    before = weights(clip)
    list(train(clip, colours(), replace(FAST, lock_image=True, ema=0.2)))
    after = weights(clip)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "token_embedding.weight" in changed
    assert all(is_text(name) or name == "logit_scale" for name in changed)


def test_locked_text_tower_does_not_change():
    clip = tiny_clip()
    before = weights(clip)
    list(train(clip, colours(), replace(FAST, lock_text=True)))
    after = weights(clip)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "visual.conv1.weight" in changed
    assert all(name.startswith("visual.") or name == "logit_scale" for name in changed)


def test_batch_norm_statistics_stay_unless_asked():
    kept, learnt = tiny_clip(resnet=True), tiny_clip(resnet=True)
    before = weights(kept)["visual.bn1.running_mean"]
    list(train(kept, colours(), FAST))
    list(train(learnt, colours(), replace(FAST, train_batch_norm=True)))
    assert torch.equal(weights(kept)["visual.bn1.running_mean"], before)
    assert not torch.equal(weights(learnt)["visual.bn1.running_mean"], before)


def test_logit_scale_stays_in_its_range():
    clip = tiny_clip()
    with torch.no_grad():
        clip.model.logit_scale.fill_(math.log(100) + 1)
    list(train(clip, colours(), replace(FAST, max_steps=1)))
    assert math.isclose(float(clip.model.logit_scale), math.log(100), abs_tol=0.01)


def test_average_is_what_an_epoch_end_shows_and_what_remains():
    clip = tiny_clip()
    run = train(clip, colours(), replace(FAST, epochs=3, ema=1.0))
    last_step, shown = weights(clip), weights(clip)
    for event in run:
        if isinstance(event, Step):
            last_step = weights(clip)
        elif isinstance(event, EpochEnd):
            shown = weights(clip)
            assert not torch.equal(shown["text_projection"], last_step["text_projection"])
    assert torch.equal(weights(clip)["text_projection"], shown["text_projection"])


def spoilt(clip: Clip, bad: Callable[[int], bool], *, row: int | None = None) -> None:
    """Makes the features of images NaN in those steps, counted from 1, of which `bad` is true."""
    calls = 0

    def encode(image: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        features = clip.model.visual(image)
        if bad(calls):  # the first call looks for the chunk that fits
            rows = slice(None) if row is None else slice(row, row + 1)
            features = features.clone()
            features[rows] = math.nan
        calls += 1
        return features

    clip.model.encode_image = encode


def test_three_bad_steps_in_a_row_stop_the_run_with_finite_weights():
    clip = tiny_clip()
    before = weights(clip)
    events: list[TrainEvent] = []
    spoilt(clip, lambda call: True, row=2)
    with pytest.raises(TrainingDiverged, match="3 steps in a row") as raised:
        events.extend(train(clip, colours(), FAST))
    skipped = [event for event in events if isinstance(event, SkippedStep)]
    assert [event.in_a_row for event in skipped] == [1, 2, 3]
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(clip).items())
    # One image of six was bad in each step; the error names the last one.
    assert [len(event.samples) for event in skipped] == [1, 1, 1]
    named = skipped[-1].samples[0]
    assert named == f"image{epoch_batches(12, 6, FAST.seed, 1)[0][2]}"
    assert named in str(raised.value)


def copied(snapshot: Snapshot) -> Snapshot:
    return copy.deepcopy(snapshot)


def test_it_goes_back_to_the_last_good_state_with_half_the_rate():
    clip = tiny_clip()
    # Steps 4, 5 and 6 are bad the first time; after going back to step 2 all is well.
    spoilt(clip, lambda call: call in (4, 5, 6))
    kept: list[Snapshot] = []
    trainer = Trainer(clip, colours(), FAST, last_good=lambda: kept[-1])
    events: list[TrainEvent] = []
    at_two: dict[str, torch.Tensor] = {}
    for event in trainer.run():
        events.append(event)
        if isinstance(event, Step) and event.step == 2 and not kept:
            kept.append(copied(trainer.snapshot()))
            at_two = weights(clip)
        if isinstance(event, RolledBack):
            assert all(torch.equal(at_two[n], tensor) for n, tensor in weights(clip).items())
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.step for step in steps] == [1, 2, 3, 3, 4, 5, 6]
    back = next(event for event in events if isinstance(event, RolledBack))
    assert (back.step, back.from_step, back.rate_factor) == (2, 6, 0.5)
    assert steps[3].learning_rate == steps[2].learning_rate / 2
    assert steps[-1].skipped == 3
    # The ends of the first two epochs are told again.
    assert [e.epoch for e in events if isinstance(e, EpochEnd)] == [1, 2, 1, 2, 3]


def test_it_goes_back_once_and_fails_if_that_was_no_help():
    clip = tiny_clip()
    spoilt(clip, lambda call: call >= 3)
    kept: list[Snapshot] = []
    trainer = Trainer(clip, colours(), FAST, last_good=lambda: kept[-1])
    events: list[TrainEvent] = []

    def follow() -> None:
        for event in trainer.run():
            events.append(event)
            if isinstance(event, Step) and event.step == 2:
                kept.append(copied(trainer.snapshot()))

    with pytest.raises(TrainingDiverged, match="learning_rate"):
        follow()
    assert sum(isinstance(event, RolledBack) for event in events) == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(clip).values())


def test_full_memory_halves_the_chunk_and_gives_the_same_weights():
    data, ends, losses = colours(12), [], []
    config = TrainConfig(batch_size=12, epochs=4, learning_rate=4e-6, ema=0.1, augment=CROPS)
    for most in (12, 3):
        clip = tiny_clip()
        clip.model.ln_final = torch.nn.Sequential(clip.model.ln_final, torch.nn.Dropout(0.2))

        def full(module: torch.nn.Module, images: tuple[torch.Tensor], most: int = most) -> None:
            if len(images[0]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")

        clip.model.visual.register_forward_pre_hook(full)
        events = list(train(clip, data, config))
        halved = [event for event in events if isinstance(event, ChunkHalved)]
        assert [(e.step, e.chunk_size) for e in halved] == ([] if most == 12 else [(1, 6), (1, 3)])
        assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4]
        # What runs in one go has no pauses, what runs in chunks of 3 has one after each.
        pauses = sum(isinstance(event, Chunk) for event in events)
        assert pauses == (0 if most == 12 else 4 * 4 * 4)
        ends.append(weights(clip))
        losses.append([event.loss for event in events if isinstance(event, Step)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert max(float((ends[0][n] - ends[1][n]).abs().max()) for n in ends[0]) <= 1e-6


def test_memory_that_is_full_for_one_sample_is_an_error():
    clip = tiny_clip()

    def full(*_: object) -> None:
        raise MemoryError

    run = train(clip, colours(), FAST)
    next(run)
    clip.model.visual.register_forward_pre_hook(full)
    with pytest.raises(MemoryError):
        list(run)


def test_a_small_memory_is_known_before_the_first_step():
    free = 4_000_000
    trainer = Trainer(tiny_clip(), colours(40), replace(FAST, batch_size=40), free_bytes=lambda: 0)
    assert next(iter(trainer.run())) == Started(
        steps=3, epochs=3, images=40, pairs=40, done=0, chunk_size=1
    )
    trainer = Trainer(
        tiny_clip(), colours(40), replace(FAST, batch_size=40), free_bytes=lambda: free
    )
    started = next(iter(trainer.run()))
    assert isinstance(started, Started)
    assert 1 < started.chunk_size < 40


def test_one_bad_step_is_skipped():
    clip = tiny_clip()
    calls = 0

    def bad_once(image: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return clip.model.visual(image) * (
            math.nan if calls == 3 else 1.0
        )  # one call looks for the chunk

    clip.model.encode_image = bad_once
    events = list(train(clip, colours(), FAST))
    assert [e.step for e in events if isinstance(e, SkippedStep)] == [2]
    assert [e.step for e in events if isinstance(e, Step)] == [1, 3, 4, 5, 6]
    assert all(torch.isfinite(tensor).all() for tensor in weights(clip).values())


def test_bad_image_is_named():
    data = colours()
    broken = MemoryPairs([*data.pairs, Pair("broken", "x")], {**data.images, "broken": b"no png"})
    with pytest.raises(InvalidPairs, match="'broken'"):
        list(train(tiny_clip(), broken, FAST))


def test_images_past_the_budget_are_decoded_ahead_and_change_nothing():
    threads: list[bool] = []

    class Watched(MemoryPairs):
        def image_bytes(self, image_key: str) -> bytes:
            threads.append(threading.current_thread().name.startswith("hotclip-decode"))
            return super().image_bytes(image_key)

    data, ends = colours(), []
    for budget in (2 << 30, 0):
        clip = tiny_clip()
        list(train(clip, Watched(data.pairs, data.images), FAST, image_budget_bytes=budget))
        ends.append(weights(clip))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    # 12 images, once with the budget and in each of 3 epochs without; the first batch of an
    # epoch waits for nothing that could be ahead of it.
    assert len(threads) == 12 + 3 * 12
    assert sum(threads) == 6 + 3 * 6


def test_one_image_is_too_few():
    with pytest.raises(InvalidPairs, match="at least 2"):
        list(train(tiny_clip(), MemoryPairs([Pair("a", "a")], {"a": picture((0, 0, 0))}), FAST))


def test_bf16_learns_too():
    clip, data = tiny_clip(), colours()
    ends = [
        event.mean_loss
        for event in train(clip, data, replace(FAST, epochs=40, precision="bf16"))
        if isinstance(event, EpochEnd)
    ]
    assert ends[-1] < 0.7 * ends[0]
    assert all(tensor.dtype == torch.float32 for tensor in weights(clip).values())


def test_says_when_it_may_draw():
    inside: list[bool] = []
    forward: list[bool] = []

    @contextmanager
    def drawing() -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    clip = tiny_clip()
    clip.model.visual.register_forward_hook(lambda *_: forward.append(bool(inside)))
    steps = [e for e in train(clip, colours(), FAST, drawing=drawing) if isinstance(e, Step)]
    assert forward == [True] * (1 + len(steps))
    assert not inside


def test_it_breathes_between_layers_and_may_be_broken_off_there():
    class Enough(Exception):
        pass

    clip, breaths = tiny_clip(), 0
    before = weights(clip)

    def pause() -> None:
        nonlocal breaths
        breaths += 1
        if breaths == 8:
            raise Enough

    run = Trainer(clip, colours(6), FAST, pause=pause).run()
    next(run)
    with pytest.raises(Enough):
        next(run)
    # A layer of both towers has an attention and two products; the vision tower has a convolution.
    assert breaths == 8
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(clip).items())
    assert not any(module._forward_hooks for module in clip.model.modules())
