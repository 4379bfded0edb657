"""How far every layer is from the base's: of each kind of tower, of each row by itself."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hotclip_server.training.clip import Clip
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.layers import Layers, row_vectors
from hotclip_server.training.selection import is_image, is_text
from hotclip_server.training.towers import Towers
from tests.unit.training.test_tuning import small_model
from tests.unit.training.tiny import tiny_clip

PRESERVING = TrainConfig(preserve=1.0)
BLOCKS = {"clip": (2, 2), "resnet": (4, 2), "timm": (12, 2), "hf": (2, 2), "siglip": (2, 2)}
TEXTS = ["a", "bcd", "efghij"]


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_blocks_of_every_kind_of_tower_are_found(kind: str, tmp_path: Path) -> None:
    model = small_model(kind, tmp_path)
    found = tuple(len(Layers(model, tower)._blocks) for tower in (is_image, is_text))
    assert found == BLOCKS[kind]


def test_one_vector_a_row_of_whatever_a_block_gives() -> None:
    places = torch.arange(12.0).view(1, 3, 4)
    assert row_vectors(places).tolist() == [[4, 5, 6, 7]]
    used = torch.tensor([[True, True, False]])
    assert row_vectors(places, used).tolist() == [[2, 3, 4, 5]]
    assert row_vectors(places.view(1, 3, 2, 2)).tolist() == [[1.5, 5.5, 9.5]]
    assert row_vectors(places[:, 0]).tolist() == [[0, 1, 2, 3]]


def output_of(module: nn.Module, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What a module gave while `run` did, and what `run` gave."""
    given: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, inputs, output: given.append(output))
    features = run()
    handle.remove()
    return given[0], features


def test_the_distance_is_that_of_every_layer_in_each_row() -> None:
    clip = tiny_clip()
    base = deepcopy(clip.model)
    towers = Towers(clip, PRESERVING)
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens = clip.tokenizer(TEXTS)
    for made in (towers.image(pixels), towers.text(towers.shorten(tokens))):
        assert made.shape == (3, 17)
        torch.testing.assert_close(made[:, -1], torch.zeros(3))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in clip.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)

    @torch.no_grad()
    def far(block: Callable[[nn.Module], nn.Module], run: Callable[[nn.Module], Tensor]) -> Tensor:
        own, other = (output_of(block(m), lambda m=m: run(m)) for m in (clip.model, base))
        pairs = ((counted(own[0]), counted(other[0])), (own[1], other[1]))
        return torch.stack([(normalize(a) - normalize(b)).square().sum(1) for a, b in pairs]).mean(
            0
        )

    def counted(given: Tensor) -> Tensor:
        """The mean over the tokens up to the one that is pooled, or over all patches."""
        if given.shape[1] != tokens.shape[1]:
            return given.mean(1)
        ends = tokens.argmax(1)
        return torch.stack([row[: end + 1].mean(0) for row, end in zip(given, ends, strict=True)])

    image = far(
        lambda m: m.visual.transformer.resblocks[0],
        lambda m: m.encode_image(clip.normalise(pixels)),
    )
    text = far(lambda m: m.transformer.resblocks[0], lambda m: m.encode_text(tokens))
    assert float(image.min()) > 1e-3
    assert float(text.min()) > 1e-3
    torch.testing.assert_close(towers.image(pixels)[:, -1], image, rtol=1e-4, atol=1e-6)
    # Shortened, and each by itself: padding and neighbours change nothing.
    short = towers.text(towers.shorten(tokens))
    torch.testing.assert_close(short[:, -1], text, rtol=1e-4, atol=1e-6)
    for row, one in enumerate(tokens.split(1)):
        alone = towers.text(towers.shorten(one))
        torch.testing.assert_close(alone[0], short[row], rtol=1e-4, atol=1e-6)


def test_a_locked_tower_is_never_far_and_runs_once() -> None:
    clip: Clip = tiny_clip()
    passes: list[int] = []
    clip.model.visual.register_forward_hook(lambda *_: passes.append(1))
    towers = Towers(clip, replace(PRESERVING, lock_image=True))
    made = towers.image(torch.rand(2, 3, 16, 16))
    assert made.shape == (2, 17)
    assert made[:, -1].tolist() == [0, 0]
    assert len(passes) == 1  # the base is a copy, with the hook


def test_a_change_deep_inside_has_a_gradient() -> None:
    """Where the features are kept as they are, the layers before them still count."""
    clip = tiny_clip()
    towers = Towers(clip, PRESERVING)
    weight = clip.model.visual.transformer.resblocks[0].mlp.c_fc.weight
    with torch.no_grad():
        weight.add_(0.5)
    clip.model.visual.proj.requires_grad_(False)
    far = towers.image(torch.rand(2, 3, 16, 16))[:, -1]
    (gradient,) = torch.autograd.grad(far.sum(), weight)
    assert float(gradient.norm()) > 0
