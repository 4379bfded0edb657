"""A server on two cores computes large batches in parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pictures import photograph

from hotclip import AsyncClient
from hotclip_server.app import build
from hotclip_server.config import ServerConfig
from hotclip_server.encoding.engines import torch_engine
from hotclip_server.encoding.engines.parts import PartThreads


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
async def test_large_batches_are_cut_and_are_what_single_images_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[int] = []
    run = PartThreads.run

    def counted(threads: PartThreads, works: Sequence[Callable[[], Any]]) -> list[Any]:
        cut.append(len(works))
        return run(threads, works)

    monkeypatch.setattr(PartThreads, "run", counted)
    # How large batches become is measured.
    monkeypatch.setattr(torch_engine, "LEAST_IMAGES", 1)
    config = ServerConfig(
        model="builtin:mini",
        data_dir=tmp_path,
        port=0,
        device="cpu",
        engine="torch",
        precision="fp32",
        threads=2,
    )
    app = build(config)
    try:
        await app.start()
        async with AsyncClient(app.address) as client:
            while (await client.server_info()).measuring:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.05)
            cut.clear()
            images = [photograph(number, 96, 96) for number in range(40)]
            together = await client.encode(images)
            assert 2 in cut
            cut.clear()
            alone = np.concatenate([await client.encode([image]) for image in images])
            assert set(cut) == {1}
    finally:
        await app.stop()
    np.testing.assert_allclose(together, alone, atol=1e-4)
