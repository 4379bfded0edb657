"""What can't serve never serves, and a restart resumes what was activated."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.registry import PLENTY, load, pinned, running
from support.versions import FakeLoader, run_inline

from hotclip_server.errors import (
    DataLoss,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.models.staging import StagingLimits
from hotclip_server.models.state import VersionState
from hotclip_server.storage.database import Database


async def test_before_the_start_a_request_is_told_to_wait(
    tmp_path: Path, loader: FakeLoader
) -> None:
    async with running(tmp_path, loader):
        pass
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    registry = ModelRegistry(database, loader, run_inline, PLENTY)
    loader.gate.clear()
    loader.loading.clear()
    starting = asyncio.create_task(registry.start("default", "fake:a"))
    assert await asyncio.to_thread(loader.loading.wait, 20)
    with pytest.raises(Unavailable) as caught:
        registry.pin()
    assert caught.value.reason == "MODEL_NOT_READY"
    loader.gate.set()
    await starting
    assert pinned(registry) == "v-a"
    await registry.stop()
    database.close()


@pytest.mark.parametrize(
    ("defect", "problem"),
    [
        ("nan", "NaN"),
        ("zero", "length"),
        ("dim", "float32"),
        ("raise", "RuntimeError"),
        ("random", "golden probes"),
    ],
)
async def test_an_unfit_version_leaves_everything_as_it_was(
    registry: ModelRegistry, loader: FakeLoader, defect: str, problem: str
) -> None:
    await load(registry, "b")
    before = registry.model_state()
    loader.defects["v-x"] = defect
    with pytest.raises(FailedPrecondition, match=problem) as caught:
        await load(registry, "x")
    assert caught.value.reason == "VERSION_UNFIT"
    assert registry.model_state() == before
    assert pinned(registry) == "v-a"
    assert "v-x" not in loader.stored
    with pytest.raises(NotFound):
        registry.get_version("v-x")
    assert loader.open_encoders == 2


async def test_features_need_no_unit_length(registry: ModelRegistry, loader: FakeLoader) -> None:
    loader.defects["v-x"] = "long"
    assert await load(registry, "x") == "v-x"


async def test_a_corrupt_version_says_so(registry: ModelRegistry, loader: FakeLoader) -> None:
    manifest = loader.import_source("fake:b")
    record = await registry.register("", manifest, {"hit@10": 0.5})
    loader.defects["v-b"] = "corrupt"
    with pytest.raises(DataLoss):
        await registry.activate("", record.id)
    assert registry.version_state("v-b") is VersionState.STORED
    assert pinned(registry) == "v-a"


async def test_what_does_not_fit_is_not_loaded(tmp_path: Path, loader: FakeLoader) -> None:
    free = 1 << 40
    limits = StagingLimits(free_bytes=lambda: free)
    async with running(tmp_path, loader, limits) as registry:
        free = 1000
        with pytest.raises(ResourceExhausted) as caught:
            await load(registry, "b")
        assert caught.value.reason == "OUT_OF_MEMORY"
        assert loader.loads == ["v-a"]


async def test_running_out_of_memory_while_loading_is_named(
    registry: ModelRegistry, loader: FakeLoader
) -> None:
    loader.defects["v-b"] = "memory"
    with pytest.raises(ResourceExhausted) as caught:
        await load(registry, "b")
    assert caught.value.reason == "OUT_OF_MEMORY"
    assert pinned(registry) == "v-a"


async def test_a_restart_resumes_and_restores_the_rollback_target(
    tmp_path: Path, loader: FakeLoader
) -> None:
    async with running(tmp_path, loader) as registry:
        await registry.activate("", await load(registry, "b"))
        before = registry.model_state()
    async with running(tmp_path, loader, source="fake:other") as registry:
        assert registry.model_state() == before
        assert pinned(registry) == "v-b"
        # Loads nothing of its own: it waits for the target that the start restores.
        assert (await registry.rollback("")).live_version == "v-a"
        assert len(registry.list_versions()) == 2


async def test_a_corrupt_live_version_gives_way_to_the_previous(
    tmp_path: Path, loader: FakeLoader
) -> None:
    async with running(tmp_path, loader) as registry:
        await registry.activate("", await load(registry, "b"))
    loader.defects["v-b"] = "corrupt"
    async with running(tmp_path, loader) as registry:
        state = registry.model_state()
        assert (state.live_version, state.previous_version) == ("v-a", "")
    loader.defects["v-a"] = "corrupt"
    with pytest.raises(DataLoss):
        async with running(tmp_path, loader):
            pass


async def test_too_little_memory_at_a_restart_changes_nothing_of_what_is_live(
    tmp_path: Path, loader: FakeLoader
) -> None:
    async with running(tmp_path, loader) as registry:
        await registry.activate("", await load(registry, "b"))
        before = registry.model_state()
    loader.defects["v-b"] = "memory"
    with pytest.raises(ResourceExhausted):
        async with running(tmp_path, loader):
            pass
    del loader.defects["v-b"]
    async with running(tmp_path, loader) as registry:
        assert registry.model_state() == before
        assert pinned(registry) == "v-b"


async def test_another_model_that_is_damaged_does_not_keep_the_server_from_starting(
    tmp_path: Path, loader: FakeLoader
) -> None:
    async with running(tmp_path, loader) as registry:
        for seed in "xy":
            record = await registry.load_version("shop", f"fake:{seed}")
            await registry.activate("shop", record.id)
    loader.defects.update({"v-x": "corrupt", "v-y": "corrupt"})
    async with running(tmp_path, loader) as registry:
        assert pinned(registry) == "v-a"
        with pytest.raises(Unavailable, match="shop"):
            registry.pin("shop")
        state = registry.model_state("shop")
        assert (state.live_version, state.previous_version) == ("v-y", "v-x")
        del loader.defects["v-x"]
        assert (await registry.activate("shop", "v-x")).live_version == "v-x"
        assert pinned(registry, model="shop") == "v-x"


async def test_what_a_crash_leaves_on_the_disk_is_removed_at_the_start(
    tmp_path: Path, loader: FakeLoader
) -> None:
    async with running(tmp_path, loader) as registry:
        await load(registry, "b")
        assert loader.unrecorded == set()
        loader.import_source("fake:c")  # and nobody records it
    async with running(tmp_path, loader) as registry:
        assert set(loader.stored) == {"v-a", "v-b"}
        made = loader.import_source("fake:c")
        assert (await registry.register("", made)).id == "v-c"
        assert loader.unrecorded == set()
        # Gone since it was stored: there is nothing to be recorded.
        loader.delete("v-c")
        with pytest.raises(NotFound):
            await registry.register("", made)


async def test_a_download_holds_up_nothing_that_is_here(tmp_path: Path, loader: FakeLoader) -> None:
    async with running(tmp_path, loader) as registry:
        await load(registry, "b")
        await registry.unload("v-b")
        loader.fetching.clear()
        slow = asyncio.create_task(registry.load_version("", "fake:c"))
        await asyncio.sleep(0.05)
        assert (await registry.activate("", "v-b")).live_version == "v-b"
        await registry.unload("v-a")
        assert not slow.done()
        # Nor for longer than a moment the end of the server.
        assert not await registry.stop(grace_s=0.2)
        loader.fetching.set()
        await asyncio.gather(slow, return_exceptions=True)


async def test_what_is_deleted_is_not_taken_back_from_those_that_drain(
    registry: ModelRegistry, loader: FakeLoader
) -> None:
    await load(registry, "b")
    with registry.pin(version="v-b") as pin:
        await load(registry, "c")
        loader.gate.clear()
        loader.loading.clear()
        busy = asyncio.create_task(load(registry, "d"))  # The others wait for it.
        assert await asyncio.to_thread(loader.loading.wait, 20)
        deleting = asyncio.create_task(registry.delete("v-b"))
        await asyncio.sleep(0.05)
        activating = asyncio.create_task(registry.activate("", "v-b"))
        again = asyncio.create_task(registry.load_version("", "fake:b"))
        await asyncio.sleep(0.05)
        loader.gate.set()
        await asyncio.gather(busy, deleting)
        made = await again
        assert made.id == "v-b"
        with pytest.raises(NotFound):
            await activating
        with registry.pin(version="v-b") as fresh:
            assert fresh.resident is not pin.resident
    await asyncio.sleep(0.05)
    assert pin.resident.encoder.closed == 1  # type: ignore[attr-defined]  # the fake's


async def test_who_pins_a_version_can_keep_it(registry: ModelRegistry, loader: FakeLoader) -> None:
    """As a collection does that is made while another version takes the staging slot."""
    await load(registry, "b")
    with registry.pin(version="v-b"):
        await load(registry, "c")
        assert registry.version_state("v-b") is VersionState.STORED
        registry.retain("v-b", "collection:x")
    assert registry.version_state("v-b") is VersionState.BOUND
    assert pinned(registry, version="v-b") == "v-b"
