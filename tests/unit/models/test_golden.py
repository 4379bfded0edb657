"""A version that is staged again gives what it gave at first, or does not serve."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from support.registry import PLENTY, load, pinned
from support.versions import FakeLoader, run_inline

from hotclip_server.encoding.engines.protocol import EngineChoice
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import FailedPrecondition
from hotclip_server.models import probes
from hotclip_server.models.golden import GoldenProbes
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.storage.database import Database
from hotclip_server.testing import FakeEncoder


@pytest.fixture
async def registry(tmp_path: Path, loader: FakeLoader) -> AsyncIterator[ModelRegistry]:
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    golden = GoldenProbes(tmp_path / "golden")
    registry = ModelRegistry(database, loader, run_inline, PLENTY, golden=golden)
    await registry.start("default", "fake:a")
    yield registry
    await registry.stop()
    database.close()


async def test_other_vectors_than_at_first_are_refused(
    registry: ModelRegistry, loader: FakeLoader
) -> None:
    await load(registry, "b")
    await registry.unload("v-b")
    before = registry.model_state()
    loader.defects["v-b"] = "other"
    with pytest.raises(FailedPrecondition, match="plain open_clip") as caught:
        await registry.activate("", "v-b")
    assert caught.value.reason == "VERSION_UNFIT"
    assert registry.model_state() == before
    assert pinned(registry) == "v-a"
    del loader.defects["v-b"]
    assert (await registry.activate("", "v-b")).live_version == "v-b"


async def test_the_reference_runs_once(
    registry: ModelRegistry, loader: FakeLoader, tmp_path: Path
) -> None:
    await load(registry, "b")
    first = len(loader.loaded[-1].batches)
    await registry.unload("v-b")
    await registry.stage("v-b")
    assert len(loader.loaded[-1].batches) == first - len(probes.TEXTS) - probes.IMAGES
    (kept,) = (tmp_path / "golden").glob("v-b.*")
    await registry.unload("v-b")
    whole = kept.read_bytes()
    for damaged in (whole[:-9], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b""):
        kept.write_bytes(damaged)  # what is damaged is made anew
        await registry.stage("v-b")
        assert len(loader.loaded[-1].batches) == first
        assert kept.read_bytes() == whole
        await registry.unload("v-b")
    await registry.delete("v-b")
    assert not list((tmp_path / "golden").glob("v-b.*"))
    assert list((tmp_path / "golden").glob("v-a.*"))


async def test_what_does_not_serve_leaves_no_reference(
    registry: ModelRegistry, loader: FakeLoader, tmp_path: Path
) -> None:
    loader.defects["v-x"] = "random"
    with pytest.raises(FailedPrecondition):
        await load(registry, "x")
    assert not list((tmp_path / "golden").glob("v-x.*"))


def test_how_near_another_engine_must_be() -> None:
    encoder = FakeEncoder("a")
    inputs = probes.prepare(encoder)
    golden = {tower: encoder.encode(tower, batch) for tower, batch in inputs.items()}
    near = {tower: rows + np.float32(0.01) for tower, rows in golden.items()}
    with pytest.raises(FailedPrecondition, match="clip-"):
        probes.check_golden(golden, near, encoder)
    encoder.engine = lambda tower: EngineChoice("torch", "bf16")  # type: ignore[method-assign]  # as another would
    probes.check_golden(golden, near, encoder)
    swapped = {Tower.TEXT: golden[Tower.TEXT][::-1], Tower.VISION: golden[Tower.VISION]}
    with pytest.raises(FailedPrecondition, match="clip-text"):
        probes.check_golden(golden, swapped, encoder)
