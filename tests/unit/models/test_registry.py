"""The registry with a fake loader and a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection
from support.versions import FakeLoader, run_inline, spec_of

from hotclip_server.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    HotclipError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.models.staging import StagingLimits
from hotclip_server.models.state import VersionState
from hotclip_server.storage.database import Database

PLENTY = StagingLimits(free_bytes=lambda: 1 << 40)


@asynccontextmanager
async def running(
    folder: Path, loader: FakeLoader, limits: StagingLimits = PLENTY, source: str = "fake:a"
) -> AsyncIterator[ModelRegistry]:
    database = Database(f"sqlite:///{folder / 'hotclip.db'}")
    database.open()
    registry = ModelRegistry(database, loader, run_inline, limits)
    try:
        await registry.start("default", source)
        yield registry
    finally:
        await registry.stop()
        database.close()


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
async def registry(tmp_path: Path, loader: FakeLoader) -> AsyncIterator[ModelRegistry]:
    async with running(tmp_path, loader) as registry:
        yield registry


async def load(registry: ModelRegistry, seed: str) -> str:
    return (await registry.load_version("", f"fake:{seed}")).id


def pinned(registry: ModelRegistry, **kwargs: str) -> str:
    with registry.pin(**kwargs) as pin:
        return pin.resident.version_id


async def test_starts_with_the_source(registry: ModelRegistry) -> None:
    state = registry.model_state()
    assert (state.name, state.live_version, state.previous_version) == ("default", "v-a", "")
    assert state.space_id == spec_of("a").space_id
    assert pinned(registry) == "v-a"


async def test_before_the_start_a_request_is_told_to_wait(
    tmp_path: Path, loader: FakeLoader
) -> None:
    async with running(tmp_path, loader):
        pass
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    registry = ModelRegistry(database, loader, run_inline, PLENTY)
    loader.gate.clear()
    starting = asyncio.create_task(registry.start("default", "fake:a"))
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable) as caught:
        registry.pin()
    assert caught.value.reason == "MODEL_NOT_READY"
    loader.gate.set()
    await starting
    assert pinned(registry) == "v-a"
    await registry.stop()
    database.close()


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


@pytest.mark.parametrize(
    ("defect", "problem"),
    [
        ("nan", "NaN"),
        ("norm", "length"),
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


async def test_a_corrupt_version_says_so(registry: ModelRegistry, loader: FakeLoader) -> None:
    manifest = loader.import_source("fake:b")
    record = await registry.register("", manifest, {"hit@10": 0.5})
    loader.defects["v-b"] = "corrupt"
    with pytest.raises(DataLoss):
        await registry.activate("", record.id)
    assert registry.version_state("v-b") is VersionState.STORED
    assert pinned(registry) == "v-a"


async def test_a_reduced_precision_is_compared_with_the_reference(
    tmp_path: Path, loader: FakeLoader
) -> None:
    limits = StagingLimits(precision="bf16", free_bytes=lambda: None)
    async with running(tmp_path, loader, limits) as registry:
        assert pinned(registry) == "v-a"
        assert loader.loads == ["v-a", "v-a"]
        assert loader.open_encoders == 1
        loader.defects["v-b"] = "reference"
        with pytest.raises(FailedPrecondition, match="clip-text in bf16 is off"):
            await load(registry, "b")
        assert loader.open_encoders == 1


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


async def test_a_model_of_its_own_name(registry: ModelRegistry) -> None:
    record = await registry.load_version("second", "fake:z")
    with pytest.raises(FailedPrecondition) as caught:
        registry.pin("second")
    assert caught.value.reason == "NO_LIVE_VERSION"
    await registry.activate("second", record.id)
    assert pinned(registry, model="second") == "v-z"
    assert pinned(registry) == "v-a"
    assert [state.name for state in registry.list_models()] == ["default", "second"]
    with pytest.raises(NotFound):
        await registry.activate("default", "v-z")
    with pytest.raises(FailedPrecondition) as caught:
        await registry.load_version("second", "fake:a")
    assert caught.value.reason == "VERSION_OF_ANOTHER_MODEL"
    with pytest.raises(InvalidArgument, match="model"):
        await registry.load_version("no/path", "fake:a")


class Participant:
    """Notes what it is asked; may veto."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []
        self.flipped: list[str] = []
        self.seen: list[str] = []
        self.veto = ""
        self.registry: ModelRegistry | None = None

    def flip(
        self,
        connection: Connection,
        model: str,
        old_version: str,
        new_version: str,
        collections: Sequence[str],
    ) -> Callable[[], None]:
        assert connection.in_transaction()
        self.asked.append((old_version, new_version, tuple(collections)))
        if self.veto:
            raise FailedPrecondition("the shadow is not complete", reason=self.veto)

        def act() -> None:
            assert self.registry is not None
            self.flipped.append(new_version)
            self.seen.append(pinned(self.registry))

        return act


async def test_participants_flip_with_the_model(registry: ModelRegistry) -> None:
    one, two = Participant(), Participant()
    for participant in (one, two):
        participant.registry = registry
        registry.add_flip_participant(participant)
    await load(registry, "b")
    two.veto = "SHADOW_INCOMPLETE"
    before = registry.model_state()
    with pytest.raises(HotclipError, match="shadow"):
        await registry.activate("", "v-b", collections=("photos",))
    assert registry.model_state() == before
    assert one.flipped == two.flipped == []
    two.veto = ""
    await registry.activate("", "v-b", validate_only=True)
    assert one.flipped == []
    await registry.activate("", "v-b", collections=("photos",))
    await registry.rollback("")
    assert one.asked[-2:] == [("v-a", "v-b", ("photos",)), ("v-b", "v-a", ())]
    assert one.flipped == one.seen == two.flipped == ["v-b", "v-a"]


async def test_a_participant_that_fails_late_does_not_undo_the_flip(
    registry: ModelRegistry,
) -> None:
    class Failing(Participant):
        def flip(self, *_: object) -> Callable[[], None]:  # type: ignore[override]  # shorter
            def act() -> None:
                raise ValueError("a bug")

            return act

    registry.add_flip_participant(Failing())
    await load(registry, "b")
    with pytest.raises(ValueError, match="a bug"):
        await registry.activate("", "v-b")
    state = registry.model_state()
    assert (state.live_version, state.previous_version) == ("v-b", "v-a")
    assert pinned(registry) == "v-b"
    assert state.staged_versions == ()


async def test_a_cancelled_activation_is_either_whole_or_absent(
    registry: ModelRegistry,
) -> None:
    await load(registry, "b")
    task = asyncio.create_task(registry.activate("", "v-b"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.1)
    assert pinned(registry) == registry.model_state().live_version


async def test_watchers_see_the_newest_state(registry: ModelRegistry) -> None:
    watch = registry.watch("default")
    first = await anext(watch)
    assert first.live_version == "v-a"
    await registry.activate("", await load(registry, "b"))
    await registry.rollback("")
    # A slow watcher gets one state, the newest.
    second = await anext(watch)
    assert (second.live_version, second.previous_version) == ("v-a", "v-b")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(watch)
    with pytest.raises(NotFound):
        await anext(registry.watch("nobody"))


async def test_watchers_end_when_the_registry_stops(tmp_path: Path, loader: FakeLoader) -> None:
    async with running(tmp_path, loader) as registry:
        watch = registry.watch()
        await anext(watch)
    with pytest.raises(Unavailable):
        await anext(watch)
