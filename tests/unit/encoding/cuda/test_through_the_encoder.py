"""From prepared items through the encoder and the device thread to rows."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from support.pictures import encoded, photograph
from support.simulated_device import SimulatedDevice
from support.small_models import TEXTS, write_model
from support.towers import inputs_of, tower_source

from hotclip_server.batching.device import DeviceThread
from hotclip_server.encoding.cuda.engine import CudaEngine, CudaEngines
from hotclip_server.encoding.cuda.gate import CaptureGate
from hotclip_server.encoding.engines.factory import EngineFactory
from hotclip_server.encoding.engines.protocol import EngineChoice
from hotclip_server.encoding.engines.remembered import EngineMemory
from hotclip_server.encoding.open_clip_encoder import OpenClipEncoder
from hotclip_server.encoding.overlapping import Overlapping
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.errors import DeviceLost
from hotclip_server.models.engine_trial import Trial
from hotclip_server.models.store import VersionStore
from hotclip_server.models.trials import Pieces


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenClipEncoder, OpenClipEncoder]:
    """Of the same version: by plain open_clip, and by the engine of a GPU."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder / "models/clip")
    store = VersionStore(folder / "versions", models_dir=folder / "models")
    version = store.import_source("local:clip").id
    plain, served = store.load(version), store.load(version)
    engines = CudaEngines(SimulatedDevice(11), CaptureGate(), (1, 4, 8))
    for tower in Tower:
        source = served.source(tower)
        assert source is not None
        served.install(tower, engines.build(source, "fp32"), None)
    served.release_model()
    return plain, served


def items_of(encoder: OpenClipEncoder, tower: Tower) -> list[Prepared]:
    if tower is Tower.TEXT:
        return [encoder.prepare_text(text) for text in TEXTS]
    return [encoder.prepare_image(encoded(photograph(i, 60 + i, 50))) for i in range(6)]


async def test_rows_come_back_to_whoever_asked(
    encoders: tuple[OpenClipEncoder, OpenClipEncoder],
) -> None:
    plain, served = encoders
    assert isinstance(served, Overlapping)
    device = DeviceThread(depth=2)
    device.start()
    wanted = {tower: plain.encode(tower, items_of(plain, tower)) for tower in Tower}
    items = {tower: items_of(served, tower) for tower in Tower}
    generator = np.random.default_rng(4)

    async def ask(number: int) -> None:
        tower = list(Tower)[number % 2]
        chosen = generator.permutation(6)[: 1 + number % 6].tolist()
        rows = await device.run(served, tower, [items[tower][index] for index in chosen])
        scale = np.abs(wanted[tower]).max()
        np.testing.assert_allclose(rows, wanted[tower][chosen], atol=1e-4 * scale)

    await asyncio.gather(*(ask(number) for number in range(60)))
    assert await asyncio.to_thread(device.stop, 5)


async def test_an_engine_that_does_not_overlap_is_run_at_once(
    encoders: tuple[OpenClipEncoder, OpenClipEncoder],
) -> None:
    plain, _ = encoders
    device = DeviceThread(depth=2)
    device.start()
    items = items_of(plain, Tower.TEXT)
    rows = await device.run(plain, Tower.TEXT, items)
    np.testing.assert_array_equal(rows, plain.encode(Tower.TEXT, items))
    assert (await device.run(plain, Tower.TEXT, [])).shape == (0, 24)
    assert await asyncio.to_thread(device.stop, 5)


def test_images_wait_where_the_device_fetches_them(
    encoders: tuple[OpenClipEncoder, OpenClipEncoder],
) -> None:
    plain, served = encoders
    pixels = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).tobytes()
    placed = served.prepare_tensor(pixels, 32, 32)
    assert placed.array.tobytes() == pixels
    assert not placed.array.flags.owndata
    assert placed.key == plain.prepare_tensor(pixels, 32, 32).key
    rows = served.encode(Tower.VISION, [placed, placed])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)  # the order of sums may differ


async def test_a_device_that_fails_under_way_is_lost() -> None:
    simulated = SimulatedDevice()
    source = tower_source("clip", Tower.TEXT)
    engine = CudaEngines(simulated, CaptureGate(), (1, 4)).build(source, "fp32")
    device = DeviceThread(depth=2, is_lost=simulated.is_lost)
    device.start()
    batch = inputs_of(source, 2)
    with pytest.raises(ValueError, match="fit none"):
        await device.call(lambda: engine.submit([np.zeros(99, np.int64)]))
    assert not device.lost
    pending = await device.call(lambda: engine.submit(batch))
    simulated.lost = True
    for work in (pending.wait, lambda: engine.run(batch)):
        with pytest.raises(DeviceLost):
            await device.call(work)
    assert device.lost
    assert await asyncio.to_thread(device.stop, 5)


async def test_a_warm_up_takes_turns_with_requests_and_a_training() -> None:
    source = tower_source("clip", Tower.VISION)
    engines = CudaEngines(SimulatedDevice(), CaptureGate(), (1, 4))
    engine = engines.build(source, "fp32")
    device = DeviceThread(depth=2)
    device.start()
    others: list[str] = []
    with engines.gate.drawing():
        warm_up = asyncio.create_task(Pieces(device.call, lambda: True).warm_up(engine))
        while len(others) < 10:
            others.append(await device.call(lambda: threading.current_thread().name))
            assert not warm_up.done()
    await asyncio.wait_for(warm_up, 30)
    assert set(others) == {"hotclip-device"}
    assert engine._slot is not None
    assert len(engine._slot.captured) == 2
    assert await asyncio.to_thread(device.stop, 5)


async def test_an_engine_whose_warm_up_fails_gives_its_slot_back(
    encoders: tuple[OpenClipEncoder, OpenClipEncoder], tmp_path: Path
) -> None:
    plain, _ = encoders
    simulated = SimulatedDevice()
    engines = CudaEngines(simulated, CaptureGate(), (1,))
    factory = EngineFactory({"cuda": engines.build})
    device = DeviceThread(depth=2)
    device.start()
    memory = EngineMemory(tmp_path / "engines.json", "here")
    pieces = Pieces(device.call, lambda: False)
    trial = Trial("v", plain, Tower.TEXT, factory.build, pieces, memory)
    simulated.begin(0, frozenset([3]))
    assert await trial.build(EngineChoice("cuda", "fp32")) is None
    (spare,) = engines._spare
    simulated.begin(0)
    built = await trial.build(EngineChoice("cuda", "fp32"))
    assert isinstance(built, CudaEngine)
    assert built._slot is spare
    assert await trial.passes(EngineChoice("cuda", "fp32"), built)
    assert await asyncio.to_thread(device.stop, 5)
