"""The registry with a fake loader and a real database: loading, swapping, pinning."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.registry import load, pinned
from support.versions import FakeLoader, spec_of

from hotclip_server.encoding.spaces import truncated
from hotclip_server.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from hotclip_server.jobs import store as jobs
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.states import JobState
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.models.state import VersionState
from hotclip_server.storage.database import Database


async def test_starts_with_the_source(registry: ModelRegistry) -> None:
    state = registry.model_state()
    assert (state.name, state.live_version, state.previous_version) == ("default", "v-a", "")
    assert state.space_id == spec_of("a").space_id
    assert pinned(registry) == "v-a"


async def test_load_activate_rollback(registry: ModelRegistry, loader: FakeLoader) -> None:
    version = await load(registry, "b")
    assert registry.version_state(version) is VersionState.STAGED
    assert pinned(registry) == "v-a"
    before = registry.model_state()
    after = await registry.activate("", version, etag=before.etag)
    assert (after.live_version, after.previous_version) == ("v-b", "v-a")
    assert after.etag != before.etag
    assert pinned(registry) == "v-b"
    assert registry.version_state("v-a") is VersionState.PREVIOUS
    loads = list(loader.loads)
    back = await registry.rollback("")
    assert (back.live_version, back.previous_version) == ("v-a", "v-b")
    assert pinned(registry) == "v-a"
    assert loader.loads == loads, "a rollback loads nothing"


async def test_the_version_before_the_previous_is_closed_when_drained(
    registry: ModelRegistry, loader: FakeLoader
) -> None:
    old = registry.pin()
    for seed in "bc":
        await registry.activate("", await load(registry, seed))
    assert registry.version_state("v-a") is VersionState.STORED
    with pytest.raises(FailedPrecondition) as caught:
        registry.pin(version="v-a")
    assert caught.value.reason == "VERSION_NOT_RESIDENT"
    assert loader.loaded[0].closed == 0, "a request still uses it"
    old.release()
    old.release()
    await asyncio.sleep(0.05)
    assert loader.loaded[0].closed == 1
    assert loader.open_encoders == 2


async def test_staging_replaces_what_was_staged(
    registry: ModelRegistry, loader: FakeLoader
) -> None:
    await load(registry, "b")
    await load(registry, "c")
    assert registry.model_state().staged_versions == ("v-c",)
    await asyncio.sleep(0.05)
    assert loader.open_encoders == 2
    # A stored version is staged again by activating it.
    assert (await registry.activate("", "v-b")).live_version == "v-b"


async def test_a_draining_version_that_is_staged_again_is_not_loaded_again(
    registry: ModelRegistry, loader: FakeLoader
) -> None:
    await load(registry, "b")
    with registry.pin(version="v-b"):
        await load(registry, "c")
        assert registry.version_state("v-b") is VersionState.STORED
        await registry.stage("v-b")
    assert loader.loads.count("v-b") == 1
    assert pinned(registry, version="v-b") == "v-b"


async def test_etags_guard_activation_and_rollback(registry: ModelRegistry) -> None:
    stale = registry.model_state().etag
    await registry.activate("", await load(registry, "b"))
    with pytest.raises(Aborted):
        await registry.activate("", "v-a", etag=stale)
    with pytest.raises(Aborted):
        await registry.rollback("", etag=stale)
    assert registry.model_state().live_version == "v-b"


async def test_of_two_activations_with_one_etag_one_wins(registry: ModelRegistry) -> None:
    etag = registry.model_state().etag
    await load(registry, "b")
    registry.retain("v-b", "test")
    await load(registry, "c")
    results = await asyncio.gather(
        *(registry.activate("", version, etag=etag) for version in ("v-b", "v-c")),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["Aborted", "ModelState"]


async def test_many_activations_at_once_end_in_one_of_them(registry: ModelRegistry) -> None:
    for seed in "bcd":
        await registry.load_version("", f"fake:{seed}")
    await asyncio.gather(*(registry.activate("", f"v-{seed}") for seed in "bcdbcd"))
    state = registry.model_state()
    assert pinned(registry) == state.live_version
    assert state.previous_version in {"v-b", "v-c", "v-d"} - {state.live_version}


async def test_validate_only_stages_and_changes_nothing(registry: ModelRegistry) -> None:
    await load(registry, "b")
    await load(registry, "c")
    before = registry.model_state()
    state = await registry.activate("", "v-b", validate_only=True)
    assert (state.live_version, state.etag) == (before.live_version, before.etag)
    assert state.staged_versions == ("v-b",)
    assert (await registry.activate("", "v-b", etag=before.etag)).previous_version == "v-a"


async def test_activating_the_live_version_keeps_the_rollback_target(
    registry: ModelRegistry,
) -> None:
    await registry.activate("", await load(registry, "b"))
    before = registry.model_state()
    assert await registry.activate("", "v-b") == before


async def test_no_rollback_without_a_previous_version(registry: ModelRegistry) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await registry.rollback("")
    assert caught.value.reason == "NO_PREVIOUS_VERSION"


async def test_spaces(registry: ModelRegistry) -> None:
    spaces = {seed: spec_of(seed).space_id for seed in "abc"}
    await registry.activate("", await load(registry, "b"))
    assert pinned(registry, expected_space_id=spaces["b"]) == "v-b"
    assert pinned(registry, expected_space_id=spaces["a"]) == "v-a"
    for arguments in (
        {"version": "v-b", "expected_space_id": spaces["a"]},
        {"expected_space_id": spaces["c"]},
    ):
        with pytest.raises(FailedPrecondition) as caught:
            registry.pin(**arguments)
        assert caught.value.reason == "SPACE_MISMATCH"
    with pytest.raises(NotFound):
        registry.pin(version="v-nowhere")
    with pytest.raises(NotFound):
        registry.pin(model="nobody")


async def test_spaces_of_fewer_dimensions(registry: ModelRegistry) -> None:
    cut = {seed: truncated(spec_of(seed), 8).space_id for seed in "abc"}
    await registry.activate("", await load(registry, "b"))
    assert pinned(registry, expected_space_id=cut["b"], dimensions=8) == "v-b"
    assert pinned(registry, expected_space_id=cut["a"], dimensions=8) == "v-a"
    for arguments in (
        {"expected_space_id": cut["c"], "dimensions": 8},
        {"expected_space_id": cut["b"], "dimensions": 7},
        {"expected_space_id": cut["b"]},
        {"expected_space_id": cut["a"], "dimensions": 8, "version": "v-b"},
    ):
        with pytest.raises(FailedPrecondition) as caught:
            registry.pin(**arguments)
        assert caught.value.reason == "SPACE_MISMATCH"
    with pytest.raises(InvalidArgument, match="dimensions"):
        registry.pin(expected_space_id=cut["b"], dimensions=1000)


async def test_request_ids(registry: ModelRegistry, loader: FakeLoader) -> None:
    both = await asyncio.gather(
        *(registry.load_version("", "fake:b", request_id="one") for _ in range(2))
    )
    assert both[0] == both[1]
    assert loader.loads.count("v-b") == 1
    with pytest.raises(InvalidArgument) as caught:
        await registry.load_version("", "fake:c", request_id="one")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert "v-c" not in loader.stored


async def test_retained_versions_stay(registry: ModelRegistry, loader: FakeLoader) -> None:
    registry.retain("v-a", "collection:x")
    for seed in "bc":
        await registry.activate("", await load(registry, seed))
    assert registry.version_state("v-a") is VersionState.BOUND
    assert pinned(registry, version="v-a") == "v-a"
    for refused in (registry.unload, registry.delete):
        with pytest.raises(FailedPrecondition, match="collection:x") as caught:
            await refused("v-a")
        assert caught.value.reason == "VERSION_IN_USE"
    registry.release("v-a", "collection:x")
    assert registry.version_state("v-a") is VersionState.STORED
    await registry.bind("v-a", "job:1")
    assert registry.version_state("v-a") is VersionState.BOUND
    registry.release("v-a", "job:1")
    with pytest.raises(FailedPrecondition):
        registry.retain("v-a", "too late")


async def test_unload_and_delete(registry: ModelRegistry, loader: FakeLoader) -> None:
    await registry.activate("", await load(registry, "b"))
    await load(registry, "c")
    for version in ("v-b", "v-a"):
        with pytest.raises(FailedPrecondition) as caught:
            await registry.delete(version)
        assert caught.value.reason == "VERSION_IN_USE"
    with pytest.raises(FailedPrecondition):
        await registry.unload("v-b")
    await registry.delete("v-c")
    assert set(loader.stored) == {"v-a", "v-b"}
    await registry.unload("v-a")
    assert registry.model_state().previous_version == ""
    await registry.delete("v-a")
    assert [record.id for record in registry.list_versions()] == ["v-b"]
    await asyncio.sleep(0.05)
    assert loader.open_encoders == 1


@pytest.mark.parametrize("field", ["base_version", "version"])
async def test_a_version_that_a_job_needs_is_not_deleted(
    registry: ModelRegistry, tmp_path: Path, field: str
) -> None:
    version = await load(registry, "c")
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    with database.transaction() as connection:
        job, _ = jobs.create(connection, NewJob(kind=JobKind.EVALUATE, spec={field: version}))
    with pytest.raises(FailedPrecondition) as caught:
        await registry.delete(version)
    assert (caught.value.reason, caught.value.metadata) == ("VERSION_IN_USE", {"job": job.id})
    assert registry.version_state(version) is VersionState.STAGED
    with database.transaction() as connection:
        jobs.set_state(connection, job.id, JobState.CANCELLED)
    database.close()
    await registry.delete(version)


async def test_a_model_of_its_own_name(registry: ModelRegistry) -> None:
    record = await registry.load_version("second", "fake:z")
    with pytest.raises(FailedPrecondition) as caught:
        registry.pin("second")
    assert caught.value.reason == "NO_LIVE_VERSION"
    await registry.activate("second", record.id)
    assert pinned(registry, model="second") == "v-z"
    assert pinned(registry, version="v-z") == "v-z"
    with pytest.raises(NotFound):
        registry.pin("default", version="v-z")
    assert pinned(registry) == "v-a"
    assert [state.name for state in registry.list_models()] == ["default", "second"]
    with pytest.raises(NotFound):
        await registry.activate("default", "v-z")
    with pytest.raises(FailedPrecondition) as caught:
        await registry.load_version("second", "fake:a")
    assert caught.value.reason == "VERSION_OF_ANOTHER_MODEL"
    with pytest.raises(InvalidArgument, match="model"):
        await registry.load_version("no/path", "fake:a")
