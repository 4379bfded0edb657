"""The engine and the slots that pass from version to version."""

import threading
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.simulated_device import SimulatedDevice
from support.towers import expected, inputs_of, tower_source

from hotclip_server.encoding.cuda import slot as slots
from hotclip_server.encoding.cuda.engine import CudaEngine, CudaEngines
from hotclip_server.encoding.cuda.gate import CaptureGate
from hotclip_server.encoding.engines.protocol import EngineUnfit, OverlappingEngine, PendingBatch
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.protocol import Tower


def engines_of(device: SimulatedDevice) -> CudaEngines:
    return CudaEngines(device, CaptureGate(), (1, 4))


def assert_gives(engine: CudaEngine, source: TowerSource, count: int) -> None:
    batch: list[NDArray[Any]] = inputs_of(source, count)
    if source.tower is Tower.VISION:
        batch = [engine.place(pixels) for pixels in batch]
    wanted = expected(source, batch)
    np.testing.assert_allclose(engine.run(batch), wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("tower", list(Tower), ids=lambda tower: tower.value)
def test_versions_take_turns_in_one_slot(tower: Tower) -> None:
    device = SimulatedDevice()
    engines = engines_of(device)
    first, second, third = (tower_source("clip", tower, seed=seed) for seed in (1, 2, 3))
    engine = engines.build(first, "fp32")
    assert isinstance(engine, OverlappingEngine)
    list(engine.warm_up())
    live = engines.build(second, "fp32")
    assert_gives(engine, first, 3)
    assert_gives(live, second, 3)
    engine.close()
    again = engines.build(third, "fp32")
    assert len(device.open_graphs) == 1, "the slot of the first, with its graphs"
    assert list(again.warm_up()) == [0.0], "there is nothing to capture"
    device.replays = 0
    assert_gives(again, third, 2)
    assert device.replays == 1
    assert_gives(live, second, 4)
    for done in (again, live):
        done.close()
    engines.close()
    assert not device.open_graphs


def test_more_than_the_largest_bucket_runs_in_parts() -> None:
    source = tower_source("clip", Tower.VISION)
    engine = engines_of(SimulatedDevice()).build(source, "fp32")
    assert_gives(engine, source, 11)


def test_another_precision_or_architecture_gets_another_slot() -> None:
    device = SimulatedDevice()
    engines = engines_of(device)
    engines.build(tower_source("clip", Tower.VISION), "fp32").close()
    half = engines.build(tower_source("clip", Tower.VISION), "bf16")
    assert half.precision == "bf16"
    wide = tower_source("quickgelu", Tower.VISION)
    assert_gives(engines.build(wide, "fp32"), wide, 2)
    with pytest.raises(EngineUnfit):
        engines.build(wide, "int8")


def test_few_spare_slots_are_kept() -> None:
    device = SimulatedDevice()
    engines = engines_of(device)
    made = [engines.build(tower_source("clip", Tower.VISION), "fp32") for _ in range(4)]
    for engine in made:
        list(engine.warm_up())
    for engine in made:
        engine.close()
    assert len(device.open_graphs) == 2


def test_memory_that_is_short_is_made_by_the_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimulatedDevice()
    engines = engines_of(device)
    spare = engines.build(tower_source("clip", Tower.VISION), "fp32")
    list(spare.warm_up())
    spare.close()
    build, tries = slots.build_tower, []

    def full(*arguments: Any) -> Any:
        tries.append(len(device.open_graphs))
        if device.open_graphs:
            raise torch.OutOfMemoryError
        return build(*arguments)

    monkeypatch.setattr(slots, "build_tower", full)
    source = tower_source("quickgelu", Tower.VISION)
    assert_gives(engines.build(source, "fp32"), source, 1)
    assert tries == [1, 0]


def test_after_the_warm_up_no_buffer_grows() -> None:
    device = SimulatedDevice()
    engines = engines_of(device)
    sources = [tower_source("clip", tower) for tower in Tower]
    made = [engines.build(source, "fp32") for source in sources]
    for engine in made:
        list(engine.warm_up())
    before = device.allocated
    for engine, source in zip(made, sources, strict=True):
        for count in (4, 1, 3, 4):
            assert_gives(engine, source, count)
    assert device.allocated == before


def test_a_closed_engine_says_so() -> None:
    source = tower_source("clip", Tower.TEXT)
    engine = engines_of(SimulatedDevice()).build(source, "fp32")
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.run(inputs_of(source, 1))


def test_a_warm_up_ends_with_its_engine() -> None:
    engine = engines_of(SimulatedDevice()).build(tower_source("clip", Tower.TEXT), "fp32")
    steps = engine.warm_up()
    next(steps)
    next(steps)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(steps)


def test_one_thread_submits_another_waits() -> None:
    source = tower_source("clip", Tower.VISION)
    engine = engines_of(SimulatedDevice(5)).build(source, "fp32")
    batch = inputs_of(source, 4)
    wanted = expected(source, batch)
    enqueued: SimpleQueue[PendingBatch | None] = SimpleQueue()
    rows: list[NDArray[np.float32]] = []

    def wait() -> None:
        while (pending := enqueued.get()) is not None:
            rows.append(pending.wait())

    thread = threading.Thread(target=wait)
    thread.start()
    for number in range(40):
        enqueued.put(engine.submit([batch[number % 4]]))
    enqueued.put(None)
    thread.join()
    np.testing.assert_allclose(
        np.concatenate(rows), np.tile(wanted, (10, 1)), atol=1e-4 * np.abs(wanted).max()
    )


def test_versions_change_while_batches_are_under_way() -> None:
    sources = [tower_source("clip", Tower.TEXT, seed=seed) for seed in range(3)]
    batch = inputs_of(sources[0], 4)
    wanted = [expected(source, batch) for source in sources]
    engines = engines_of(SimulatedDevice(8))
    live = [(0, engines.build(sources[0], "fp32"))]
    stop = threading.Event()
    swaps = []

    def swap() -> None:
        while not stop.is_set():
            number = (live[0][0] + 1) % 3
            old, live[0] = live[0], (number, engines.build(sources[number], "fp32"))
            old[1].close()  # batches of it may be enqueued
            swaps.append(number)

    def wait() -> None:
        while (entry := enqueued.get()) is not None:
            answers.append((entry[0], entry[1].wait()))

    enqueued: SimpleQueue[tuple[int, PendingBatch] | None] = SimpleQueue()
    answers: list[tuple[int, NDArray[np.float32]]] = []
    threads = [threading.Thread(target=target) for target in (swap, wait)]
    for thread in threads:
        thread.start()
    while len(swaps) < 30 and threads[0].is_alive():
        number, engine = live[0]
        try:
            enqueued.put((number, engine.submit(batch)))
        except RuntimeError as error:
            if "closed" not in str(error):
                raise
    stop.set()
    enqueued.put(None)
    for thread in threads:
        thread.join()
    assert len(swaps) >= 30
    assert len({number for number, _ in answers}) == 3
    for number, rows in answers:
        np.testing.assert_allclose(rows, wanted[number], atol=1e-4 * np.abs(wanted[number]).max())
