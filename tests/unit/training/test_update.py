"""A step in pieces is the step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hotclip_server.training import update
from hotclip_server.training.average import WeightAverage
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.trainer import Trainer
from hotclip_server.training.update import Pauses, clip_gradients, step
from tests.unit.training.tiny import colours, tiny_clip

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


def parameters() -> list[nn.Parameter]:
    drawn = torch.Generator().manual_seed(0)
    shapes = [(40, 30), (30,), (), (7, 5, 3), (200, 30)]
    return [nn.Parameter(torch.randn(shape, generator=drawn)) for shape in shapes]


def draw_gradients(own: list[nn.Parameter], seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    for number, parameter in enumerate(own):
        gradient = torch.randn(parameter.shape, generator=drawn)
        parameter.grad = None if number == seed % 5 else gradient


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_pieces_give_the_bits_of_one_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "PIECE_BYTES", 500)
    whole, cut = parameters(), parameters()
    plain, in_pieces = make(whole), make(cut)
    pauses: list[None] = []
    for seed in range(4):
        draw_gradients(whole, seed)
        draw_gradients(cut, seed)
        norm = nn.utils.clip_grad_norm_(whole, 1.0)
        plain.step()
        also = clip_gradients(cut, 1.0, Pauses(lambda: pauses.append(None)))
        step(in_pieces, cut, Pauses(lambda: pauses.append(None)))
        assert torch.equal(norm, also)
        assert all(parameter.grad is None for parameter in cut)
    for one, other in zip(whole, cut, strict=True):
        assert torch.equal(one, other)
    assert len(pauses) >= 4 * 3 * 2


def test_a_pause_that_ends_the_run_waits_for_the_whole_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(update, "PIECE_BYTES", 500)
    own = parameters()
    before = [parameter.detach().clone() for parameter in own]
    for parameter in own:
        parameter.grad = torch.ones_like(parameter)
    asked: list[Tensor] = []

    def refuse() -> None:
        asked.append(own[-1].detach().clone())
        raise KeyError("the run is to end")

    pauses = Pauses(refuse)
    step(OPTIMIZERS["adamw"](own), own, pauses)
    assert torch.equal(asked[0], before[-1])  # the last was not moved yet
    assert not any(torch.equal(old, new) for old, new in zip(before, own, strict=True))
    with pytest.raises(KeyError):
        pauses.end()
    assert len(asked) == 1


def test_without_a_pause_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "PIECE_BYTES", 1)
    pieces = list(Pauses(None).pieces(parameters()))
    assert [len(piece) for piece in pieces] == [5]


def test_the_average_pauses_between_tensors() -> None:
    class Held:
        def __init__(self) -> None:
            self.tensors = {"a": torch.zeros(3), "b": torch.zeros(2)}

        def state(self) -> dict[str, Tensor]:
            return self.tensors

    held = Held()
    average = WeightAverage(held, 10)  # type: ignore[arg-type]  # all that it asks of a tuning here
    pauses: list[None] = []
    average.update(lambda: pauses.append(None))
    assert len(pauses) == 2


def pauses_of_a_run(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Pauses of two steps on a ResNet; in each, every BatchNorm lies in its convolution."""
    monkeypatch.setattr(update, "PIECE_BYTES", piece_bytes)
    clip = tiny_clip(resnet=True)
    norms = [one for one in clip.model.modules() if isinstance(one, nn.BatchNorm2d)]
    folded: list[bool] = []

    def pause() -> None:
        folded.append(all("forward" in vars(norm) for norm in norms))

    config = TrainConfig(method="full", batch_size=4, max_steps=2, ema=0.5)
    for _ in Trainer(clip, colours(4), config, pause=pause).run():
        pass
    assert norms
    assert folded
    assert all(folded)
    assert not any("forward" in vars(norm) for norm in norms)
    return len(folded)


def test_a_trainer_pauses_within_its_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pauses_of_a_run(1 << 40, monkeypatch)
    assert pauses_of_a_run(1, monkeypatch) > whole + 2 * 3 * 10
