"""What is said of a version that can't be brought into memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.registry import PLENTY
from support.versions import FakeLoader, run_inline

from hotclip_server.encoding.protocol import Encoder, Prepared, Tower
from hotclip_server.errors import DeviceLost
from hotclip_server.models import probes, quiet
from hotclip_server.models.golden import GoldenProbes
from hotclip_server.models.staging import Stager
from hotclip_server.models.state import VersionRecord


def record_of(loader: FakeLoader) -> VersionRecord:
    return VersionRecord(
        manifest=loader.import_source("fake:a"),
        model="default",
        create_time=datetime.now(UTC),
        metrics={},
    )


async def test_a_device_that_fails_is_not_the_versions_fault() -> None:
    async def run(encoder: Encoder, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        raise DeviceLost

    loader = FakeLoader()
    stager = Stager(loader, run, PLENTY)
    try:
        with pytest.raises(DeviceLost):
            await stager.load(record_of(loader))
    finally:
        stager.stop()
    assert loader.open_encoders == 0


async def test_every_probe_begins_when_no_request_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("FIRST_S", "MOST_S", "PATIENCE"):
        monkeypatch.setattr(quiet, name, 1e9)
    pressure, at_begin = 0.0, list[float]()

    def answered() -> None:
        nonlocal pressure
        pressure = 0.0

    async def run(encoder: Encoder, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        nonlocal pressure
        at_begin.append(pressure)
        pressure = 1.0  # somebody comes while it runs
        asyncio.get_running_loop().call_later(0.005, answered)
        return await run_inline(encoder, tower, batch)

    loader = FakeLoader()
    limits = replace(PLENTY, pressure_s=lambda: pressure)
    stager = Stager(loader, run, limits, golden=GoldenProbes(tmp_path))
    try:
        await stager.load(record_of(loader))
    finally:
        stager.stop()
    assert len(at_begin) > 2 * (probes.IMAGES + len(probes.TEXTS) // 2)
    assert not any(at_begin)
