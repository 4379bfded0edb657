"""The order of copies, computes and completions, on a device that does as it may."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.simulated_device import Fault, SimulatedDevice
from support.towers import expected, inputs_of, tower_source

from hotclip_server.encoding.cuda.gate import CaptureGate
from hotclip_server.encoding.cuda.lane import Pending
from hotclip_server.encoding.cuda.pipeline import Pipeline
from hotclip_server.encoding.cuda.slot import Slot
from hotclip_server.encoding.cuda.staging import StagingRows
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.protocol import Tower

BATCHES = (1, 2, 5)
ITEMS = 12

sizes = st.lists(st.tuples(st.sampled_from(Tower), st.integers(1, 5)), min_size=1, max_size=8)


@cache
def source_of(tower: Tower) -> TowerSource:
    return tower_source("clip", tower)


@cache
def known(tower: Tower) -> tuple[list[NDArray[Any]], NDArray[np.float32]]:
    items = inputs_of(source_of(tower), ITEMS)
    return items, expected(source_of(tower), items)


class World:
    """A pipeline, a slot of each tower, and batches whose answers are known."""

    def __init__(self, device: SimulatedDevice, *, graphs: bool = False) -> None:
        self.device = device
        self.pipeline = Pipeline(device)
        self.slots = {t: Slot(device, source_of(t), "fp32", BATCHES) for t in Tower}
        images = known(Tower.VISION)[0]
        self.rows = StagingRows(device.host_buffer(6 * images[0].nbytes), images[0].shape)
        if graphs:
            for slot in self.slots.values():
                list(slot.warm_up(self.pipeline.compute, CaptureGate()))

    def submit(self, tower: Tower, chosen: list[int], *, place: bool) -> Pending:
        items = [known(tower)[0][index] for index in chosen]
        if place and tower is Tower.VISION:
            items = [self.rows.place(item) for item in items]
        return self.pipeline.submit(self.slots[tower], items, self.rows)


@cache
def shared(graphs: bool) -> World:
    """Tracing takes a second: one world for many examples, each of which leaves it idle."""
    return World(SimulatedDevice(), graphs=graphs)


def wrong(tower: Tower, chosen: list[int], rows: NDArray[np.float32]) -> bool:
    wanted = known(tower)[1][chosen]
    return not np.allclose(rows, wanted, atol=1e-4 * np.abs(wanted).max())


def run_all(world: World, batches: list[tuple[Tower, int]], *, lag: int, place: bool) -> int:
    """How many batches gave a wrong answer; each is awaited `lag` submits later."""
    waiting: list[tuple[Tower, list[int], Pending]] = []
    failures = 0
    for number, (tower, count) in enumerate(batches):
        chosen = [(3 * number + 7 * index) % ITEMS for index in range(count)]
        waiting.append((tower, chosen, world.submit(tower, chosen, place=place)))
        while len(waiting) > lag:
            tower, chosen, pending = waiting.pop(0)
            failures += wrong(tower, chosen, pending.wait())
    return failures + sum(wrong(tower, chosen, p.wait()) for tower, chosen, p in waiting)


@settings(deadline=None, max_examples=100)
@given(
    batches=sizes,
    seed=st.integers(0, 1 << 30),
    lag=st.integers(0, 8),
    place=st.booleans(),
    graphs=st.booleans(),
)
def test_every_batch_gets_its_own_answer(
    batches: list[tuple[Tower, int]], seed: int, lag: int, place: bool, graphs: bool
) -> None:
    world = shared(graphs)
    world.device.begin(seed)
    assert run_all(world, batches, lag=lag, place=place) == 0
    assert (world.device.replays > 0) == graphs
    assert len(world.rows.free) == 6


def test_a_missing_wait_shows() -> None:
    batches = [(tower, 3) for tower in (*Tower, *Tower)]
    world = World(SimulatedDevice())
    world.device.ignores_waits = True
    failures = 0
    for seed in range(20):
        world.device.begin(seed)
        failures += run_all(world, batches, lag=2, place=False)
    assert failures > 0


@settings(deadline=None, max_examples=100)
@given(batches=sizes, seed=st.integers(0, 1 << 30), faults=st.frozensets(st.integers(0, 150)))
def test_a_failure_is_its_own_batch_s(
    batches: list[tuple[Tower, int]], seed: int, faults: frozenset[int]
) -> None:
    world = shared(False)
    world.device.begin(seed, faults)
    answered = 0
    for number, (tower, count) in enumerate(batches):
        chosen = [(number + index) % ITEMS for index in range(count)]
        try:
            rows = world.submit(tower, chosen, place=number % 2 == 0).wait()
        except Fault:
            continue
        assert not wrong(tower, chosen, rows)
        answered += 1
    assert faults or answered == len(batches)


@pytest.mark.parametrize("call", range(16))
def test_nothing_of_a_batch_that_failed_is_left_under_way(call: int) -> None:
    world = shared(False)
    world.device.begin(9, frozenset([call]))
    try:
        world.submit(Tower.VISION, [0, 1], place=False)
    except Fault:
        assert world.device.is_idle()
    else:
        assert call > 12


def test_the_others_under_way_are_untouched_by_a_failure() -> None:
    world = World(SimulatedDevice(3))
    first = world.submit(Tower.VISION, [1, 2], place=False)
    with pytest.raises(ValueError, match="fit none"):
        world.pipeline.submit(world.slots[Tower.TEXT], [np.zeros(17, np.int64)])
    with pytest.raises(ValueError, match="broadcast"):
        world.pipeline.submit(world.slots[Tower.VISION], [np.zeros((3, 3, 3), np.uint8)])
    second = world.submit(Tower.TEXT, [3], place=False)
    assert not wrong(Tower.VISION, [1, 2], first.wait())
    assert not wrong(Tower.TEXT, [3], second.wait())


def test_a_device_that_has_failed_hangs_nobody() -> None:
    world = World(SimulatedDevice(1))
    pending = world.submit(Tower.TEXT, [1], place=False)
    world.device.lost = True
    for _ in range(2):
        with pytest.raises(Fault):
            pending.wait()
    with pytest.raises(Fault):
        world.submit(Tower.TEXT, [1], place=False)


def test_the_same_image_twice_in_a_batch() -> None:
    world = World(SimulatedDevice(2))
    image = world.rows.place(known(Tower.VISION)[0][4])
    other = world.rows.place(known(Tower.VISION)[0][5])
    pending = world.pipeline.submit(world.slots[Tower.VISION], [other, image, image], world.rows)
    assert not wrong(Tower.VISION, [5, 4, 4], pending.wait())
