"""Towers in place: equal to open_clip's, with weights that come and go at one address."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.towers import KINDS, OTHERS, expected, inputs_of, tower_source

from hotclip_server.encoding.cuda.attention import LastBlock, SelfAttention
from hotclip_server.encoding.cuda.buckets import Bucket
from hotclip_server.encoding.cuda.patches import PatchEmbedding
from hotclip_server.encoding.cuda.towers import CudaTower, architecture_of, build_tower
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.protocol import Tower

BATCHES = (1, 4, 8)
TOWERS = [*((kind, tower) for kind in KINDS for tower in Tower), *OTHERS]
ALIKE = [("resnet", Tower.VISION), ("convnext", Tower.VISION)]
"""Untrained, they give every image nearly the same vector."""
each_tower = pytest.mark.parametrize(("kind", "which"), TOWERS)


def run(tower: CudaTower, batch: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    """In the bucket of the batch, over memory with the rests of another."""
    length = max(map(len, batch)) if not tower.row_shape else 1
    bucket = tower.buckets.of(len(batch), length)
    memory = torch.zeros(bucket.items * tower.row_bytes(bucket.length), dtype=torch.uint8)
    used = memory[: len(batch) * tower.row_bytes(bucket.length)]
    tower.write(used.view(len(batch), -1).numpy(), batch, bucket.length)
    with torch.no_grad():
        features: NDArray[np.float32] = tower.run(memory, bucket).float().numpy()
    return features[: len(batch)]


@each_tower
def test_equal_to_open_clip(kind: str, which: Tower) -> None:
    source = tower_source(kind, which)
    tower = build_tower(source, "fp32", BATCHES)
    tower.load(source)
    for count in (1, 3, 8):
        batch = inputs_of(source, count, seed=count)
        wanted = expected(source, batch)
        np.testing.assert_allclose(run(tower, batch), wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("kind", "which"), [one for one in TOWERS if one not in ALIKE])
def test_half_precision_is_near(kind: str, which: Tower) -> None:
    source = tower_source(kind, which)
    tower = build_tower(source, "bf16", BATCHES)
    tower.load(source)
    batch = inputs_of(source, 8)
    wanted = expected(source, batch)
    spread = np.median(np.linalg.norm(wanted - np.roll(wanted, 1, 0), axis=1))
    error = np.linalg.norm(run(tower, batch) - wanted, axis=1).max()
    assert 0 < error < 0.1 * spread


@each_tower
def test_other_weights_take_the_place_of_the_first(kind: str, which: Tower) -> None:
    first, second = (tower_source(kind, which, seed=seed) for seed in (1, 2))
    assert architecture_of(first, "bf16") == architecture_of(second, "bf16")
    tower = build_tower(first, "fp32", BATCHES)
    tower.load(first)
    batch = inputs_of(first, 4)
    before = run(tower, batch)
    addresses = {name: value.data_ptr() for name, value in tower.state().items()}
    tower.load(second)
    after = run(tower, batch)
    assert {name: value.data_ptr() for name, value in tower.state().items()} == addresses
    assert np.abs(after - before).max() > 0.01
    wanted = expected(second, batch)
    np.testing.assert_allclose(after, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("kind", "which", "found"),
    [
        ("clip", Tower.VISION, {SelfAttention, LastBlock, PatchEmbedding}),
        ("clip", Tower.TEXT, {SelfAttention, LastBlock}),
        ("eos", Tower.TEXT, {SelfAttention, LastBlock}),
        ("siglip", Tower.TEXT, {SelfAttention}),
        ("resnet", Tower.VISION, set()),
    ],
)
def test_what_is_rewritten(kind: str, which: Tower, found: set[type]) -> None:
    tower = build_tower(tower_source(kind, which), "fp32", BATCHES)
    rewritten = {SelfAttention, LastBlock, PatchEmbedding}
    assert {type(module) for module in tower._model.modules()} & rewritten == found


def test_shapes_do_not_tell_an_architecture() -> None:
    sources = [tower_source("clip", Tower.VISION, head_width=width) for width in (32, 16)]
    shapes = [
        {name: value.shape for name, value in source.model.state_dict().items()}
        for source in sources
    ]
    assert shapes[0] == shapes[1]
    assert architecture_of(sources[0], "fp32") != architecture_of(sources[1], "fp32")


def test_a_foreign_model_is_refused() -> None:
    tower = build_tower(tower_source("clip", Tower.VISION), "fp32", BATCHES)
    with pytest.raises(RuntimeError, match="not in a model of the same architecture"):
        tower.load(tower_source("clip", Tower.VISION, width=128))


def test_precisions() -> None:
    with pytest.raises(EngineUnfit, match="not in int8"):
        build_tower(tower_source("clip", Tower.TEXT), "int8", BATCHES)


def test_the_source_stays_as_it_is() -> None:
    source = tower_source("clip", Tower.VISION)
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    tower = build_tower(source, "bf16", BATCHES)
    tower.load(source)
    after = source.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert expected(source, inputs_of(source, 1)).shape == (1, 24)
    assert tower.buckets.largest == Bucket(8, 1)
