"""What is said of a version that can't be brought into memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pytest
from numpy.typing import NDArray
from support.registry import PLENTY
from support.versions import FakeLoader

from hotclip_server.encoding.protocol import Encoder, Prepared, Tower
from hotclip_server.errors import DeviceLost
from hotclip_server.models.staging import Stager
from hotclip_server.models.state import VersionRecord


async def test_a_device_that_fails_is_not_the_versions_fault() -> None:
    async def run(encoder: Encoder, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        raise DeviceLost

    loader = FakeLoader()
    record = VersionRecord(
        manifest=loader.import_source("fake:a"),
        model="default",
        create_time=datetime.now(UTC),
        metrics={},
    )
    stager = Stager(loader, run, PLENTY)
    try:
        with pytest.raises(DeviceLost):
            await stager.load(record)
    finally:
        stager.stop()
    assert loader.open_encoders == 0
