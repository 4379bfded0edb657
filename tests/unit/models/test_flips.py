"""Who takes part in a flip, who is told of it, and what a cancelled one leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection
from support.registry import PLENTY, load, pinned, running
from support.versions import FakeLoader

from hotclip_server.batching.backlog import RUNNING_S
from hotclip_server.errors import (
    FailedPrecondition,
    HotclipError,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from hotclip_server.models import quiet, slots
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.models.state import ModelState


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

    def release(self, connection: Connection, model: str, version: str) -> Callable[[], None]:
        assert connection.in_transaction()
        self.asked.append((version, "", ()))
        return lambda: self.flipped.append("released " + version)


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
    await registry.unload("v-b")  # what a rollback would return to
    assert one.asked[-1] == ("v-b", "", ())
    assert one.flipped[-1] == two.flipped[-1] == "released v-b"
    await registry.unload("v-b")
    assert one.flipped.count("released v-b") == 1


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
    # A slow watcher gets every revision, and of what is not one the newest.
    seen = [await anext(watch) for _ in range(2)]
    assert [(s.live_version, s.previous_version) for s in seen] == [("v-b", "v-a"), ("v-a", "v-b")]
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


async def test_a_request_that_comes_again_flips_nothing(registry: ModelRegistry) -> None:
    await load(registry, "b")
    etag = registry.model_state().etag
    first = await registry.activate("", "v-b", etag=etag, request_id="r")
    # Its etag is an old one by now; that it was done counts first.
    assert await registry.activate("", "v-b", etag=etag, request_id="r") == first
    back = await registry.rollback("", request_id="r")  # another method, another request
    assert back.live_version == "v-a"
    assert await registry.rollback("", request_id="r") == back
    assert await registry.activate("", "v-b", etag=etag, request_id="r") == back
    with pytest.raises(InvalidArgument) as caught:
        await registry.activate("", "v-a", request_id="r")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    trial = await registry.activate("", "v-b", request_id="s", validate_only=True)
    assert trial == back
    assert (await registry.activate("", "v-b", request_id="s")).live_version == "v-b"


async def test_of_two_equal_requests_at_once_one_flips(registry: ModelRegistry) -> None:
    await registry.activate("", await load(registry, "b"))
    states = await asyncio.gather(*(registry.rollback("", request_id="r") for _ in range(4)))
    assert {state.live_version for state in states} == {"v-a"}
    assert registry.model_state().revision == states[0].revision == 3


async def test_a_refused_request_may_come_again(registry: ModelRegistry) -> None:
    participant = Participant()
    participant.registry = registry
    registry.add_flip_participant(participant)
    await load(registry, "b")
    participant.veto = "SHADOW_INCOMPLETE"
    with pytest.raises(HotclipError, match="shadow"):
        await registry.activate("", "v-b", request_id="r")
    participant.veto = ""
    assert (await registry.activate("", "v-b", request_id="r")).live_version == "v-b"


async def test_a_watcher_goes_on_where_it_was(tmp_path: Path, loader: FakeLoader) -> None:
    async with running(tmp_path, loader) as registry:
        for seed in "bc":
            await registry.activate("", await load(registry, seed))
        await registry.rollback("")
        await registry.unload("v-c")
        before = registry.model_state()
        assert (before.revision, before.previous_version) == (5, "")
    async with running(tmp_path, loader) as registry:
        assert registry.model_state() == before
        watch = registry.watch("default", {"default": 1})
        seen = [await anext(watch) for _ in range(4)]
        assert [(s.revision, s.live_version, s.previous_version) for s in seen] == [
            (2, "v-b", "v-a"),
            (3, "v-c", "v-b"),
            (4, "v-b", "v-c"),
            (5, "v-b", ""),
        ]
        assert seen[-1] == before
        assert len({state.etag for state in seen}) == len({s.change_time for s in seen}) == 4
        assert seen[0].space_id == seen[2].space_id == before.space_id != seen[1].space_id
        # As fast as they come, and not only the newest.
        for seed in "ab":
            await registry.activate("", await load(registry, seed))
        assert [(await anext(watch)).revision for _ in range(2)] == [6, 7]
        # Of another server's past nothing is made up.
        ahead = registry.watch("default", {"default": 99, "other": 1})
        assert (await anext(ahead)).revision == 7


async def test_a_model_that_is_made_while_a_watcher_is_slow_or_away(
    registry: ModelRegistry,
) -> None:
    async def flip(model: str, *seeds: str) -> None:
        for seed in seeds:
            version = await registry.load_version(model, f"fake:{model}-{seed}")
            await registry.activate(model, version.id)

    async def told(watch: AsyncGenerator[ModelState, None], count: int) -> list[tuple[str, int]]:
        found: dict[tuple[str, int], None] = {}  # What is staged comes under the same revision.
        async with asyncio.timeout(10):
            while len(found) < count:
                state = await anext(watch)
                found[state.name, state.revision] = None
        return list(found)

    await flip("old", "a")
    slow = registry.watch()
    assert (await anext(slow)).name == "default"
    await flip("old", "b")  # whose turn has not come
    await flip("slow", "a", "b", "c")
    assert await told(slow, 5) == [("old", 1), ("old", 2), *(("slow", n) for n in (1, 2, 3))]
    # One that was told of these and was away since.
    await flip("late", "a", "b")
    back = registry.watch("", {"default": 1, "old": 2, "slow": 2})
    assert await told(back, 5) == [
        ("default", 1),
        ("late", 1),
        ("late", 2),
        ("old", 2),
        ("slow", 3),
    ]
    # Who has seen nothing gets what is now, also of one model.
    assert await told(registry.watch(), 4) == [
        ("default", 1),
        ("late", 2),
        ("old", 2),
        ("slow", 3),
    ]
    assert await told(registry.watch("late", {"slow": 1}), 1) == [("late", 2)]


async def test_a_flip_waits_until_no_item_waits_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressure = 0.0
    limits = replace(PLENTY, pressure_s=lambda: pressure)
    async with running(tmp_path, FakeLoader(), limits) as registry:
        first, second = pinned(registry), await load(registry, "b")
        pressure = 1.0
        monkeypatch.setattr(slots, "LULL_S", 60.0)
        await registry.activate("", second, validate_only=True)  # flips nothing, waits for nobody
        flip = asyncio.create_task(registry.activate("", second))
        await asyncio.sleep(10 * quiet.CHECK_S)
        assert pinned(registry) == first
        assert not flip.done()
        pressure = RUNNING_S
        await flip
        assert pinned(registry) == second
        pressure = 1.0
        monkeypatch.setattr(slots, "LULL_S", 5 * quiet.CHECK_S)
        await registry.rollback("")
        assert pinned(registry) == first
