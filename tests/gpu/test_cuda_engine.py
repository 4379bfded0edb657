"""The engine of a GPU on one: graphs, weights in place, two batches under way, captures beside a
training. What needs no GPU is in tests/unit/encoding/cuda."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.towers import expected, inputs_of, tower_source

from hotclip_server.encoding.cuda.device import CaptureFailed
from hotclip_server.encoding.cuda.engine import CudaEngine, CudaEngines
from hotclip_server.encoding.cuda.gate import CaptureGate
from hotclip_server.encoding.cuda.slot import Slot
from hotclip_server.encoding.cuda.torch_device import TorchDevice
from hotclip_server.encoding.engines.protocol import PendingBatch
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.protocol import Tower

pytestmark = pytest.mark.gpu

BATCHES = (1, 2, 8, 16)
# Largest distance to the reference over the median distance between references.
DISTANCE_RATIO = {"fp32": 0.01, "bf16": 0.1, "fp16": 0.1}
# An untrained ResNet gives every image nearly the same vector: only fp32 can tell them apart.
PAIRS = [
    (kind, precision)
    for kind in ("clip", "quickgelu", "custom-text", "siglip", "eos", "resnet")
    for precision in DISTANCE_RATIO
    if kind != "resnet" or precision == "fp32"
]


@pytest.fixture
def engines(cuda: str) -> Iterator[CudaEngines]:
    torch.backends.cudnn.allow_tf32 = False
    made = CudaEngines(TorchDevice(torch.device(cuda).index), CaptureGate(), BATCHES)
    yield made
    made.close()
    torch.cuda.synchronize()


def warm(engine: CudaEngine) -> None:
    for _ in engine.warm_up():
        pass


def slot_of(engine: CudaEngine) -> Slot:
    assert engine._slot is not None
    return engine._slot


def assert_near(
    rows: NDArray[np.float32], wanted: NDArray[np.float32], precision: str = "fp32"
) -> None:
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (wanted, rows))
    between = np.linalg.norm(a[:, None] - a[None], axis=2)
    median = np.median(between[np.triu_indices(len(a), 1)]) if len(a) > 1 else 1.0
    assert np.linalg.norm(a - b, axis=1).max() <= DISTANCE_RATIO[precision] * median


@pytest.mark.parametrize("tower", list(Tower), ids=lambda tower: tower.value)
@pytest.mark.parametrize(("kind", "precision"), PAIRS)
def test_equal_with_and_without_graphs(
    kind: str, precision: str, tower: Tower, engines: CudaEngines, cuda: str
) -> None:
    source = tower_source(kind, tower, device=cuda)
    engine = engines.build(source, precision)
    batch = inputs_of(source, 16)
    wanted = expected(source, batch)
    assert_near(engine.run(batch), wanted, precision)
    warm(engine)
    slot = slot_of(engine)
    assert set(slot.captured) == set(slot.buckets)
    for count in (16, 11, 5, 2):
        assert_near(engine.run(batch[:count]), wanted[:count], precision)
    engine.close()


@pytest.mark.parametrize("tower", list(Tower), ids=lambda tower: tower.value)
def test_graphs_see_weights_that_are_copied_into_place(
    tower: Tower, engines: CudaEngines, cuda: str
) -> None:
    sources = [tower_source("clip", tower, seed=seed, device=cuda) for seed in (1, 2, 3)]
    engine = engines.build(sources[0], "fp32")
    warm(engine)
    slot = slot_of(engine)
    addresses = {name: value.data_ptr() for name, value in slot.tower.state().items()}
    graphs = dict(slot.captured)
    batch = inputs_of(sources[0], 11)
    for source in sources:
        engine.close()
        engine = engines.build(source, "fp32")
        assert slot_of(engine) is slot
        assert slot.captured == graphs
        assert {n: v.data_ptr() for n, v in slot.tower.state().items()} == addresses
        for _ in range(3):
            assert_near(engine.run(batch), expected(source, batch))
    engine.close()


def test_two_batches_under_way(engines: CudaEngines, cuda: str) -> None:
    sources = [tower_source("clip", tower, seed=7, device=cuda) for tower in Tower]
    made = [engines.build(source, "fp32") for source in sources]
    for engine in made:
        warm(engine)
    items = [inputs_of(source, 48) for source in sources]
    wanted = [expected(s, batch) for s, batch in zip(sources, items, strict=True)]
    enqueued: SimpleQueue[tuple[int, list[int], PendingBatch] | None] = SimpleQueue()
    answers: list[tuple[int, list[int], NDArray[np.float32]]] = []

    def wait() -> None:
        while (entry := enqueued.get()) is not None:
            which, chosen, pending = entry
            answers.append((which, chosen, pending.wait()))

    thread = threading.Thread(target=wait)
    thread.start()
    generator = np.random.default_rng(1)
    for number in range(400):
        which = int(generator.integers(2))
        chosen = generator.permutation(48)[: int(generator.integers(1, 17))].tolist()
        batch: list[NDArray[Any]] = [items[which][index] for index in chosen]
        if sources[which].tower is Tower.VISION and number % 3:
            batch = [made[which].place(pixels) for pixels in batch]
        enqueued.put((which, chosen, made[which].submit(batch)))
    enqueued.put(None)
    thread.join()
    assert len(answers) == 400
    for which, chosen, rows in answers:
        scale = np.abs(wanted[which]).max()
        np.testing.assert_allclose(rows, wanted[which][chosen], atol=1e-3 * scale)
    for engine in made:
        engine.close()


def test_captures_beside_a_training_that_allocates_and_drops_out(
    engines: CudaEngines, cuda: str
) -> None:
    stop = threading.Event()
    failures: list[Exception] = []
    steps: list[float] = []

    def train() -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream(cuda)):
                model = torch.nn.Sequential(
                    torch.nn.Linear(512, 2048), torch.nn.Dropout(0.1), torch.nn.Linear(2048, 512)
                ).to(cuda)
                while not stop.is_set():
                    rows = 64 + 37 * (len(steps) % 50)  # another size of memory each time
                    with engines.gate.drawing():
                        x = torch.randn(rows, 512, pin_memory=True).to(cuda, non_blocking=True)
                        loss = model(x).square().mean()
                    loss.backward()
                    steps.append(float(loss))
                    if len(steps) % 20 == 0:
                        torch.cuda.empty_cache()
        except Exception as error:  # noqa: BLE001 - looked at by the test
            failures.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    sources = [tower_source("clip", tower, device=cuda) for tower in Tower]
    made = [engines.build(source, "fp32") for source in sources]
    for engine in made:
        for pause in engine.warm_up():
            stop.wait(pause)
    before = len(steps)
    for engine, source in zip(made, sources, strict=True):
        batch = inputs_of(source, 16)
        assert_near(engine.run(batch), expected(source, batch))
        slot = slot_of(engine)
        assert set(slot.captured) == set(slot.buckets)
    stop.set()
    thread.join()
    assert not failures
    assert before > 0
    for engine in made:
        engine.close()


def test_a_capture_that_fails_leaves_everything_working(engines: CudaEngines, cuda: str) -> None:
    source = tower_source("clip", Tower.VISION, device=cuda)
    engine = engines.build(source, "fp32")
    warm(engine)
    graphs = engines.device.graphs()
    x = torch.ones(8, device=cuda)

    def looks_at_a_value() -> None:
        x.add_(float(x.sum()))

    def divides() -> None:
        x.add_(1)
        x.add_(1 // 0)

    for work in (looks_at_a_value, divides) * 2:
        with pytest.raises(CaptureFailed):
            graphs.capture(work)
    assert torch.nn.functional.dropout(torch.ones(1000, device=cuda), 0.5).sum() > 0
    torch.cuda.empty_cache()
    batch = inputs_of(source, 5)
    assert_near(engine.run(batch), expected(source, batch))
    y = torch.ones(8, device=cuda)
    queue = engines.device.queue()
    queue.replay(graphs.capture(lambda: y.add_(1)))
    queue.synchronize()
    assert y.tolist() == [2.0] * 8
    graphs.close()
    engine.close()


def test_streams_are_never_shared(engines: CudaEngines) -> None:
    assert isinstance(engines.device, TorchDevice)
    taken = [queue.stream.cuda_stream for queue in (engines.pipeline.compute,)]
    sets = []
    while True:
        try:
            sets.append(engines.device.graphs())
        except CaptureFailed:
            break
    taken += [graphs._stream.cuda_stream for graphs in sets]
    assert len(taken) == len(set(taken)) == 32 - 2  # the pipeline has three
    trained = {torch.cuda.Stream().cuda_stream for _ in range(64)}
    assert not trained & set(taken)
    for graphs in sets:
        graphs.close()


def test_closing_frees_what_was_captured(engines: CudaEngines, cuda: str) -> None:
    def build_and_close() -> int:
        source: TowerSource = tower_source("clip", Tower.VISION, device=cuda)
        engine = engines.build(source, "fp32")
        warm(engine)
        engine.close()
        engines.close()
        del source, engine
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    build_and_close()
    first = build_and_close()
    assert build_and_close() <= first
