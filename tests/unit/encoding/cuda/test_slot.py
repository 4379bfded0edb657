"""A slot: what is captured, and weights that change below the graphs."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.simulated_device import SimulatedDevice
from support.towers import expected, inputs_of, tower_source
from torch import nn

from hotclip_server.encoding.cuda.buckets import Bucket
from hotclip_server.encoding.cuda.gate import CaptureGate
from hotclip_server.encoding.cuda.pipeline import Pipeline
from hotclip_server.encoding.cuda.slot import Slot
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.protocol import Tower

BATCHES = (1, 4)


def make(source: TowerSource) -> tuple[SimulatedDevice, Pipeline, Slot]:
    device = SimulatedDevice()
    return device, Pipeline(device), Slot(device, source, "fp32", BATCHES)


def assert_gives(rows: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(rows, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["clip", "siglip", "resnet", "eos"])
@pytest.mark.parametrize("tower", list(Tower), ids=lambda tower: tower.value)
def test_graphs_see_weights_that_are_copied_into_place(kind: str, tower: Tower) -> None:
    first, second = (tower_source(kind, tower, seed=seed) for seed in (1, 2))
    device, pipeline, slot = make(first)
    assert set(slot.warm_up(pipeline.compute, CaptureGate())) == {0.0}
    assert set(slot.captured) == set(slot.buckets)
    batch = inputs_of(first, 3)
    device.replays = 0
    assert_gives(pipeline.submit(slot, batch).wait(), expected(first, batch))
    graphs = dict(slot.captured)
    slot.load(second)
    assert_gives(pipeline.submit(slot, batch).wait(), expected(second, batch))
    assert device.replays == 2
    assert slot.captured == graphs
    assert list(slot.warm_up(pipeline.compute, CaptureGate())) == []


def test_a_graph_does_not_see_weights_that_are_put_in_their_place() -> None:
    # The simulation must be able to fail: a graph keeps addresses.
    source = tower_source("clip", Tower.VISION)
    _, pipeline, slot = make(source)
    list(slot.warm_up(pipeline.compute, CaptureGate()))
    batch = inputs_of(source, 1)
    before = pipeline.submit(slot, batch).wait()
    for module in slot.tower._model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight = nn.Parameter(torch.zeros_like(module.weight))
    assert_gives(pipeline.submit(slot, batch).wait(), before)


def test_weights_wait_for_the_batch_that_still_runs() -> None:
    first, second = (tower_source("clip", Tower.TEXT, seed=seed) for seed in (1, 2))
    batch = inputs_of(first, 4)
    for seed in range(20):
        device, pipeline, slot = make(first)
        device.begin(seed)
        pending = pipeline.submit(slot, batch)
        slot.load(second)
        assert_gives(pending.wait(), expected(first, batch))


def test_without_graphs_it_runs_as_it_is() -> None:
    source = tower_source("clip", Tower.TEXT)
    device, pipeline, slot = make(source)
    device.captures_fail = True
    assert list(slot.warm_up(pipeline.compute, CaptureGate())) == [0.0]
    batch = inputs_of(source, 3)
    assert_gives(pipeline.submit(slot, batch).wait(), expected(source, batch))
    assert device.replays == 0


def test_a_capture_is_tried_again_while_a_training_draws() -> None:
    source = tower_source("clip", Tower.VISION)
    _, pipeline, slot = make(source)
    gate = CaptureGate()
    steps = slot.warm_up(pipeline.compute, gate)
    assert next(steps) == 0.0
    with gate.drawing():
        assert next(steps) > 0
        assert next(steps) > 0
        assert not slot.captured
    assert next(steps) == 0.0
    assert set(slot.captured) == {Bucket(4)}


def test_graphs_end_together() -> None:
    device, pipeline, slot = make(tower_source("clip", Tower.VISION))
    list(slot.warm_up(pipeline.compute, CaptureGate()))
    (graphs,) = device.open_graphs
    assert len(graphs.captured) == len(BATCHES)
    slot.close()
    assert graphs.closed
    assert not device.open_graphs
