"""A version is closed behind what the device was given of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.registry import PLENTY, load
from support.versions import FakeLoader

from hotclip_server.batching.batcher import Batcher, BatchLimits
from hotclip_server.batching.budget import Budget
from hotclip_server.batching.device import DeviceThread
from hotclip_server.models import closing
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.storage.database import Database


@asynccontextmanager
async def registry_on(
    device: DeviceThread, folder: Path, loader: FakeLoader
) -> AsyncIterator[ModelRegistry]:
    database = Database(f"sqlite:///{folder / 'hotclip.db'}")
    database.open()
    registry = ModelRegistry(database, loader, device.run, PLENTY)
    device.start()
    await registry.start("default", "fake:a")
    try:
        yield registry
    finally:
        await registry.stop()
        database.close()


async def test_a_batch_that_nobody_waits_for_ends_before_its_version_is_closed(
    tmp_path: Path, loader: FakeLoader, caplog: pytest.LogCaptureFixture
) -> None:
    device = DeviceThread()
    async with registry_on(device, tmp_path, loader) as registry:
        batcher = Batcher(device, BatchLimits(budget=Budget(items=100, nbytes=1 << 20)))
        old = await load(registry, "b")
        encoder = loader.loaded[-1]
        hang = threading.Event()
        busy = asyncio.create_task(device.call(hang.wait))
        with registry.pin(version=old) as pin:
            item = pin.resident.encoder.prepare_text("a cat")
            asked = asyncio.create_task(batcher.encode(pin.resident, [item], deadline=None))
            await asyncio.sleep(0.05)
            asked.cancel()
        await registry.unload(old)
        await asyncio.sleep(0.05)
        closed_early = encoder.closed
        with caplog.at_level(logging.WARNING):
            hang.set()
            await busy
            await device.call(lambda: None)
            await asyncio.sleep(0.05)
        await batcher.stop()
        assert not closed_early
        assert not caplog.records
        assert encoder.closed == 1
    assert device.stop(5)


async def test_a_device_that_hangs_keeps_no_server_from_stopping(
    tmp_path: Path, loader: FakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "STOP_S", 0.05)
    device, hang = DeviceThread(), threading.Event()
    async with registry_on(device, tmp_path, loader) as registry:
        await registry.unload(await load(registry, "b"))
        busy = asyncio.create_task(device.call(hang.wait))
        await asyncio.sleep(0)
    assert loader.open_encoders == 0
    hang.set()
    await busy
    assert device.stop(5)
