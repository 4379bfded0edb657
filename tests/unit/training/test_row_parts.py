"""A step whose rows several cores divide is the same step, to the bit each time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hotclip_server.encoding.engines.parts import PartThreads
from hotclip_server.training import row_parts
from hotclip_server.training.breathing import breathing
from hotclip_server.training.clip import Clip, count_weights
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.dropout import draws_in_training
from hotclip_server.training.errors import TrainingDiverged
from hotclip_server.training.events import ChunkHalved, SkippedStep, Step
from hotclip_server.training.folding import folded
from hotclip_server.training.gradients import GradientCache, Gradients
from hotclip_server.training.modes import set_modes
from hotclip_server.training.objective import Objective
from hotclip_server.training.row_parts import LEAST_ROWS, RowParts, exact_in_parts
from hotclip_server.training.towers import Towers
from hotclip_server.training.trainer import Trainer
from hotclip_server.training.tuning import tuning_of
from tests.unit.training.test_gradients import (
    CONFIG,
    PAIRS,
    batch_of,
    prepared,
    relative_error,
)
from tests.unit.training.tiny import colours, tiny_clip, weights

RUN = TrainConfig(method="full", max_steps=3, batch_size=10, learning_rate=1e-3, seed=5)


@pytest.fixture(autouse=True)
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gradients(
    clip: Clip, chunk_size: int, *, in_parts: bool, config: TrainConfig = CONFIG
) -> tuple[dict[str, Tensor], Gradients]:
    batch = batch_of(clip)
    parts = RowParts(clip.model)
    cache = GradientCache(
        towers=Towers(clip, config),
        objective=Objective(clip.model, config),
        drawing=nullcontext,
        draws=draws_in_training(clip.model),
        parts=parts,
    )
    set_modes(clip.model, tuning_of(clip.model, config).moved, config)
    clip.model.zero_grad(set_to_none=True)
    with parts.running(wanted=in_parts), folded(clip.model):
        assert len(parts.cut(slice(0, PAIRS))) == (2 if in_parts else 1)
        run = cache.backward(batch, lambda rows: batch.images[rows].double() / 255, 3, chunk_size)
        while True:
            try:
                next(run)
            except StopIteration as end:
                done: Gradients = end.value
                break
    moved = {n: (p, p.grad) for n, p in clip.model.named_parameters() if p.grad is not None}
    assert all(gradient.stride() == p.stride() for p, gradient in moved.values())
    assert len({gradient.data_ptr() for _, gradient in moved.values()}) == len(moved)
    return {name: gradient.clone() for name, (_, gradient) in moved.items()}, done


@pytest.mark.parametrize("chunk_size", [64, 2 * LEAST_ROWS])
@pytest.mark.parametrize("resnet", [False, True])
@pytest.mark.parametrize("locked", [None, "lock_image", "lock_text"])
def test_parts_give_the_gradient_of_the_whole(
    resnet: bool, chunk_size: int, locked: str | None
) -> None:
    clip = prepared(resnet=resnet, dropout=False)
    config = replace(CONFIG, **{locked: True}) if locked else CONFIG
    whole, kept = gradients(clip, 64, in_parts=False, config=config)
    found, again = gradients(clip, chunk_size, in_parts=True, config=config)
    assert relative_error(found, whole) <= 1e-10
    assert torch.allclose(again.loss, kept.loss, rtol=1e-12, atol=0)
    assert torch.allclose(again.image, kept.image, rtol=1e-10, atol=1e-12)
    assert torch.allclose(again.text, kept.text, rtol=1e-10, atol=1e-12)


def test_parts_are_of_all_rows_in_order_and_not_too_small() -> None:
    parts = RowParts(nn.Linear(1, 1))
    assert parts.cut(slice(0, 64)) == [slice(0, 64)]
    with parts.running(wanted=True):
        assert parts.cut(slice(3, 14)) == [slice(3, 8), slice(8, 14)]
        assert parts.cut(slice(0, 2 * LEAST_ROWS - 1)) == [slice(0, 2 * LEAST_ROWS - 1)]
    assert parts.cut(slice(0, 64)) == [slice(0, 64)]


class Shared(nn.Module):
    """Parameters of which autograd gives some one tensor, and one of repeated numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.same = (nn.Parameter(torch.ones(2, 3)) for _ in range(2))
        self.repeated = nn.Parameter(torch.ones(2, 3))
        self.alone = nn.Parameter(torch.ones(2, 3))

    def forward(self, rows: Tensor) -> Tensor:
        both = rows @ (self.one + self.same)
        return both + rows @ self.alone + self.repeated.sum()


def test_gradients_of_parts_are_added_once_where_autograd_shares_them() -> None:
    model = Shared()
    parts = RowParts(model)
    rows = torch.arange(12.0).view(6, 2)
    given = torch.arange(18.0).view(6, 3)
    expected = [g.clone() for g in torch.autograd.grad(model(rows), [*model.parameters()], given)]
    places: set[int] = set()
    for times in (1, 2):  # what is there is added to
        halves = (slice(2), slice(2, 6))
        found = [parts.gradients([model(rows[half])], [given[half]]) for half in halves]
        # What makes the test one: of four tensors two lie in one place.
        assert len({g.data_ptr() for g in found[0] if g is not None}) == 3
        places = places or {g.data_ptr() for g in found[0] if g is not None}
        parts.add(found)
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, times * gradient)
    assert model.alone.grad is not None
    assert model.alone.grad.data_ptr() in places  # no copy where there need not be any


def trained(*, resnet: bool) -> dict[str, Tensor]:
    clip = tiny_clip(resnet=resnet)
    for _ in Trainer(clip, colours(20), RUN).run():
        pass
    return weights(clip)


def ended() -> bool:
    """Whether the threads of parts end, within a while."""
    threads = [t for t in threading.enumerate() if t.name.startswith("hotclip-train-part")]
    for thread in threads:
        thread.join(10)
    return not any(thread.is_alive() for thread in threads)


def in_turn(_: PartThreads, works: Sequence[Callable[[], Any]]) -> list[Any]:
    """On one thread with one core, the last part first."""
    found: list[Any] = []

    def work() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        found.extend(one() for one in reversed(works))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.set_num_threads(2)
    return found[::-1]


@pytest.mark.parametrize("resnet", [False, True])
def test_runs_have_the_same_bits_whichever_part_is_first(
    resnet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0
    run = PartThreads.run

    def counting(threads: PartThreads, works: Sequence[Callable[[], Any]]) -> list[Any]:
        nonlocal counted
        counted += 1
        return run(threads, works)

    monkeypatch.setattr(PartThreads, "run", counting)
    first = trained(resnet=resnet)
    assert counted == 2 * (RUN.max_steps or 0)
    second = trained(resnet=resnet)
    monkeypatch.setattr(PartThreads, "run", in_turn)
    third = trained(resnet=resnet)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert torch.equal(tensor, third[name]), name


class Second:
    """Raises in the part that comes second, from the so-manieth call of a module on."""

    def __init__(self, error: Exception, *, once: bool) -> None:
        self._error = error
        self._once = once
        self._calls = 0
        self._lock = threading.Lock()

    def __call__(self, *_: object) -> None:
        with self._lock:
            self._calls += 1
            calls = self._calls
        if calls == 2 or (calls > 2 and not self._once):
            raise self._error


def test_full_memory_in_a_part_halves_the_chunk_and_changes_nothing() -> None:
    told: list[list[tuple[float, float]]] = []
    for full in (False, True):
        clip = tiny_clip()
        if full:
            clip.model.visual.register_forward_hook(Second(MemoryError("full"), once=True))
        events = list(Trainer(clip, colours(20), replace(RUN, chunk_size=10)).run())
        halved = [event.chunk_size for event in events if isinstance(event, ChunkHalved)]
        assert halved == ([5] if full else [])
        told.append([(e.loss, e.grad_norm) for e in events if isinstance(e, Step)])
    for one, other in zip(*told, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_an_error_in_a_part_ends_the_run_when_all_parts_have_ended() -> None:
    clip = tiny_clip()
    clip.model.visual.register_forward_hook(Second(ValueError("broken"), once=True))
    run = Trainer(clip, colours(20), RUN).run()
    with pytest.raises(ValueError, match="broken"):
        list(run)
    assert not clip.model.training
    assert ended()


def test_what_is_not_finite_in_a_part_skips_the_step() -> None:
    clip = tiny_clip()
    with torch.no_grad():
        clip.model.visual.proj.fill_(float("nan"))
    run = Trainer(clip, colours(20), RUN).run()
    events = []
    with pytest.raises(TrainingDiverged):
        events.extend(run)
    assert [event.in_a_row for event in events if isinstance(event, SkippedStep)] == [1, 2, 3]


def test_pauses_are_taken_by_one_thread_at_a_time_and_can_end_the_run() -> None:
    clip = tiny_clip()
    inside: list[str] = []
    seen: set[str] = set()
    together: list[list[str]] = []
    steps = 0

    class Ended(Exception):
        pass

    def pause() -> None:
        inside.append(threading.current_thread().name)
        seen.update(inside)
        together.extend([[*inside]] if len(inside) > 1 else [])
        inside.pop()
        if steps == 2:
            raise Ended

    run = Trainer(clip, colours(20), replace(RUN, max_steps=10), pause=pause).run()
    while steps < 2:
        steps += isinstance(next(run), Step)
    with pytest.raises(Ended):
        list(run)
    assert not together
    assert {name for name in seen if name.startswith("hotclip-train-part")}
    assert ended()


def test_parts_wait_for_one_that_pauses() -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    pausing, go_on = threading.Event(), threading.Event()
    calls: list[str] = []

    def pause() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 1:
            pausing.set()
            assert go_on.wait(10)

    with breathing(layers, pause):
        first = threading.Thread(target=layers, args=(torch.ones(1, 4),), name="first")
        first.start()
        assert pausing.wait(10)
        second = threading.Thread(target=layers, args=(torch.ones(1, 4),), name="second")
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert calls == ["first"]
        go_on.set()
        first.join()
        second.join()
    assert sorted(calls) == ["first", "first", "second", "second"]


def test_only_small_towers_that_keep_nothing_between_rows_are_divided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = tiny_clip()
    config = RUN.resolved(pairs=20, weights=1, logit_bias=False, device="cpu")
    assert config.precision == "fp32"
    assert exact_in_parts(plain, config)
    assert exact_in_parts(tiny_clip(resnet=True), config)
    assert not exact_in_parts(plain, replace(config, preserve=0.1))
    assert not exact_in_parts(plain, replace(config, train_batch_norm=True))
    assert not exact_in_parts(plain, replace(config, precision="bf16"))
    assert not exact_in_parts(prepared(resnet=False, dropout=True), config)
    monkeypatch.setattr(row_parts, "MOST_WEIGHTS", count_weights(plain.model) - 1)
    assert not exact_in_parts(plain, config)
    monkeypatch.undo()
    plain.model.visual = nn.Sequential(plain.model.visual)
    assert not exact_in_parts(plain, config)
