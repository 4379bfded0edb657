"""The gradient of a batch is the same however the batch is cut."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.transformer import PatchDropout
from torch import Tensor, nn

from hotclip_server.training.clip import Clip
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.dataset import Batch, TrainingSet
from hotclip_server.training.dropout import draws_in_training
from hotclip_server.training.gradients import GradientCache, Gradients, cut
from hotclip_server.training.losses import equal_targets, info_nce, positive_mask
from hotclip_server.training.modes import set_modes
from hotclip_server.training.objective import Objective
from hotclip_server.training.row_parts import RowParts
from hotclip_server.training.towers import Towers
from hotclip_server.training.tuning import tuning_of
from tests.unit.training.tiny import colours, tiny_clip

PAIRS = 11
CONFIG = TrainConfig(batch_size=PAIRS, positives="share")


def prepared(*, resnet: bool, dropout: bool) -> Clip:
    """In fp64; with dropout of patches, in the attention and of the texts' features."""
    clip = tiny_clip(resnet=resnet)
    for module in clip.model.modules():
        if isinstance(module, nn.BatchNorm2d):  # at 0 at first, which hides what is before it
            nn.init.uniform_(module.weight, 0.5, 1)
    if dropout:
        if not resnet:
            clip.model.visual.patch_dropout = PatchDropout(0.5)
        for module in clip.model.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.3
        clip.model.ln_final = nn.Sequential(clip.model.ln_final, nn.Dropout(0.4))
    clip.model.double()
    return clip


def batch_of(clip: Clip) -> Batch:
    pairs = TrainingSet(clip, colours(PAIRS))
    batch = pairs.batch(np.arange(PAIRS), pairs.captions(0, 0))
    # Two texts more than images.
    more = batch.text_keys[:, :2]
    return replace(
        batch,
        tokens=torch.cat([batch.tokens, batch.tokens[:2].flip(1).contiguous()]),
        text_keys=torch.cat([batch.text_keys, more], dim=1),
    )


def gradients(
    clip: Clip, chunk_size: int, config: TrainConfig = CONFIG, seed: int = 3
) -> tuple[dict[str, Tensor], Gradients, int]:
    """By name of the parameter, with the features, and how often it paused."""
    batch = batch_of(clip)
    cache = GradientCache(
        towers=Towers(clip, config),
        objective=Objective(clip.model, config),
        drawing=nullcontext,
        draws=draws_in_training(clip.model),
        parts=RowParts(clip.model),
    )
    set_modes(clip.model, tuning_of(clip.model, config).moved, config)
    clip.model.zero_grad(set_to_none=True)
    run = cache.backward(batch, lambda rows: batch.images[rows].double() / 255, seed, chunk_size)
    pauses = 0
    while True:
        try:
            next(run)
        except StopIteration as end:
            found = {
                n: p.grad.clone() for n, p in clip.model.named_parameters() if p.grad is not None
            }
            return found, end.value, pauses
        pauses += 1


def relative_error(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest of all parameters. The bias of an attention's keys has no gradient: what
    rounding leaves of it is not compared."""
    assert got.keys() == wanted.keys()
    rounding = 1e-12 * max(float(gradient.norm()) for gradient in wanted.values())
    real = [name for name, gradient in wanted.items() if gradient.norm() > rounding]
    assert len(real) > 0.9 * len(wanted)
    return max(float((got[name] - wanted[name]).norm() / wanted[name].norm()) for name in real)


@pytest.mark.parametrize("resnet", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
def test_every_chunk_size_gives_the_gradient_of_one_big_batch(resnet: bool, dropout: bool):
    clip = prepared(resnet=resnet, dropout=dropout)
    statistics = {n: b.clone() for n, b in clip.model.named_buffers()}
    whole, kept, pauses = gradients(clip, 64)
    assert pauses == 0
    assert whole["logit_scale"] != 0
    for chunk_size in (1, 3, 8, PAIRS):
        cut_up, again, pauses = gradients(clip, chunk_size)
        assert pauses == 2 * (-(-PAIRS // chunk_size) + -(-(PAIRS + 2) // chunk_size))
        assert relative_error(cut_up, whole) <= 1e-10
        assert torch.allclose(again.loss, kept.loss, rtol=1e-12, atol=0)
        assert torch.allclose(again.image, kept.image, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(b, statistics[n]) for n, b in clip.model.named_buffers())
    other, _, _ = gradients(clip, 64, seed=4)
    assert (relative_error(other, whole) > 1e-3) == dropout


def test_the_whole_batch_is_what_plain_autograd_gives():
    clip = prepared(resnet=False, dropout=False)
    found, _, _ = gradients(clip, 4)
    batch, model = batch_of(clip), clip.model
    model.zero_grad(set_to_none=True)
    image, text = (
        nn.functional.normalize(features, dim=-1)
        for features in (
            model.encode_image(clip.normalise(batch.images.double() / 255)),
            model.encode_text(batch.tokens),
        )
    )
    positives = positive_mask(batch.image_keys, batch.text_keys)
    info_nce(image, text, model.logit_scale, equal_targets(positives)).backward()
    plain = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert relative_error(found, plain) <= 1e-10


@pytest.mark.parametrize("locked", ["lock_image", "lock_text"])
def test_a_locked_tower_runs_once_and_gets_no_gradient(locked: str):
    clip = prepared(resnet=False, dropout=True)
    config = replace(CONFIG, **{locked: True})
    whole, _, _ = gradients(clip, 64, config)
    cut_up, _, pauses = gradients(clip, 4, config)
    assert relative_error(cut_up, whole) <= 1e-10
    assert pauses == (3 + 2 * 4 if locked == "lock_image" else 2 * 3 + 4)
    of_image = any(name.startswith("visual.") for name in whole)
    assert of_image == (locked == "lock_text")


def test_parts_cover_all_rows_in_order():
    for rows in (1, 7, 64):
        for size in (1, 3, 64):
            parts = list(cut(rows, size))
            assert [i for part in parts for i in range(rows)[part]] == list(range(rows))
            assert max(part.stop - part.start for part in parts) <= size
