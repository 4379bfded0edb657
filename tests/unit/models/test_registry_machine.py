"""A hypothesis state machine of the registry: loads, swaps, requests that come again, pins,
holders, restarts and crashes in any order, against a model of what must be.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)
from support.registry_model import Operation, in_any_order
from support.versions import FakeLoader, run_inline

from hotclip_server.errors import Aborted, DataLoss, FailedPrecondition, NotFound
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.models.residents import Pin
from hotclip_server.models.staging import StagingLimits
from hotclip_server.models.state import VersionState
from hotclip_server.storage.database import Database

SEEDS = st.sampled_from("abcd")
HOLDERS = st.sampled_from(["collection:x", "collection:y"])
OPERATIONS = st.tuples(
    st.sampled_from(["activate", "activate", "rollback", "unload", "delete", "load"]),
    SEEDS.map("v-{}".format),
)


class RegistryMachine(RuleBasedStateMachine):
    """`history`, `known` and `held` are what the real registry must agree with."""

    pins: Bundle[tuple[Pin, str]] = Bundle("pins")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.loader = FakeLoader()
        self.history = [("v-a", "")]
        """Live and previous version, of each revision."""
        self.requests: list[tuple[str, str, str]] = []
        """Request id, version (empty: a rollback) and etag of what was done."""
        self.known = {"v-a"}
        self.staged = ""
        self.held: set[tuple[str, str]] = set()
        self.open_pins: set[Pin] = set()
        self.old_etags: set[str] = set()
        self.start()

    @property
    def live(self) -> str:
        return self.history[-1][0]

    @property
    def previous(self) -> str:
        return self.history[-1][1]

    def start(self) -> None:
        self.database = Database(f"sqlite:///{Path(self.folder.name) / 'hotclip.db'}")
        self.database.open()
        limits = StagingLimits(free_bytes=lambda: None)
        self.registry = ModelRegistry(self.database, self.loader, run_inline, limits)
        self.run(self.registry.start("default", "fake:a"))
        self.settle()

    def run(self, work):  # type: ignore[no-untyped-def]  # any awaitable
        return self.loop.run_until_complete(work)

    def call(self, function, *args, **kwargs):  # type: ignore[no-untyped-def]  # any function
        """Calls a function that belongs on the event loop."""

        async def inside():  # type: ignore[no-untyped-def]  # what it returns
            return function(*args, **kwargs)

        return self.run(inside())

    def settle(self) -> None:
        """Waits for the registry's background work."""
        self.run(self.registry._background.settle())

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            for pin in self.open_pins:
                self.call(pin.release)
            self.run(self.registry.stop())
            self.database.close()
            self.loop.close()
            self.folder.cleanup()

    def resident(self, version: str) -> bool:
        return self.registry.version_state(version) is not VersionState.STORED

    @rule(seed=SEEDS)
    def load(self, seed: str) -> None:
        assert self.run(self.registry.load_version("", f"fake:{seed}")).id == f"v-{seed}"
        self.known.add(f"v-{seed}")
        self.to_slot(f"v-{seed}")
        assert self.resident(f"v-{seed}")

    @rule(defect=st.sampled_from(["nan", "dim", "raise", "corrupt"]))
    def load_what_is_unfit(self, defect: str) -> None:
        self.loader.defects["v-x"] = defect
        before = self.registry.model_state()
        with pytest.raises((FailedPrecondition, DataLoss)):
            self.run(self.registry.load_version("", "fake:x"))
        assert self.registry.model_state() == before

    @rule(seed=SEEDS, use_etag=st.booleans())
    def activate(self, seed: str, use_etag: bool) -> None:
        version = f"v-{seed}"
        if version not in self.known:
            with pytest.raises(NotFound):
                self.run(self.registry.activate("", version))
            return
        etag = self.registry.model_state().etag
        self.brought(version)
        state = self.run(self.registry.activate("", version, etag=etag if use_etag else ""))
        if version != self.live:
            self.history.append((version, self.live))
            self.old_etags.add(etag)
        assert state.live_version == version
        self.flipped()

    @precondition(lambda self: self.old_etags)
    @rule(seed=SEEDS)
    def activate_with_an_old_etag(self, seed: str) -> None:
        for etag in self.old_etags:
            with pytest.raises((Aborted, NotFound)):
                self.run(self.registry.activate("", f"v-{seed}", etag=etag))

    @rule()
    def rollback(self) -> None:
        loads = len(self.loader.loads)
        if not self.previous:
            with pytest.raises(FailedPrecondition):
                self.run(self.registry.rollback(""))
        else:
            self.run(self.registry.rollback(""))
            self.history.append((self.previous, self.live))
            self.flipped()
        assert len(self.loader.loads) == loads

    @rule(seed=st.one_of(st.none(), SEEDS), use_etag=st.booleans())
    def ask_with_an_id(self, seed: str | None, use_etag: bool) -> None:
        """An activation, or a rollback, that may come again."""
        version = f"v-{seed}" if seed else ""
        if version not in self.known if version else not self.previous:
            return
        etag = self.registry.model_state().etag
        request = (f"r{len(self.requests)}", version, etag if use_etag else "")
        self.requests.append(request)
        target = version or self.previous
        self.brought(target)
        self.send(request)
        if target != self.live:
            self.history.append((target, self.live))
            self.old_etags.add(etag)
        self.flipped()

    def send(self, request: tuple[str, str, str]) -> None:
        request_id, version, etag = request
        if version:
            self.run(self.registry.activate("", version, etag=etag, request_id=request_id))
        else:
            self.run(self.registry.rollback("", etag=etag, request_id=request_id))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        """Nothing happens, whatever has happened since: also if its version is gone."""
        self.send(data.draw(st.sampled_from(self.requests)))

    @rule(data=st.data())
    def watch_from_a_revision(self, data: st.DataObject) -> None:
        seen = data.draw(st.integers(0, len(self.history)))

        async def follow() -> list[tuple[int, str, str]]:
            found = []
            async with aclosing(self.registry.watch("default", {"default": seen})) as states:
                async for state in states:
                    found.append((state.revision, state.live_version, state.previous_version))
                    if state.revision == len(self.history):
                        break
            return found

        numbered = [(n, *both) for n, both in enumerate(self.history, start=1)]
        # The state now always comes.
        assert self.run(follow()) == (numbered[seen:] or numbered[-1:])

    @rule(seed=SEEDS, keep_rollback=st.booleans())
    def unload(self, seed: str, keep_rollback: bool) -> None:
        version = f"v-{seed}"
        if version not in self.known:
            return
        needed = version == self.live or (keep_rollback and version == self.previous)
        if needed or any(held == version for held, _ in self.held):
            with pytest.raises(FailedPrecondition):
                self.run(self.registry.unload(version, keep_rollback=keep_rollback))
            return
        self.run(self.registry.unload(version, keep_rollback=keep_rollback))
        if version == self.previous:
            self.history.append((self.live, ""))
        self.staged = "" if self.staged == version else self.staged
        assert not self.resident(version)

    @rule(seed=SEEDS)
    def delete(self, seed: str) -> None:
        version = f"v-{seed}"
        if version not in self.known:
            return
        if version in (self.live, self.previous) or any(h == version for h, _ in self.held):
            with pytest.raises(FailedPrecondition):
                self.run(self.registry.delete(version))
            return
        self.run(self.registry.delete(version))
        self.known.discard(version)
        self.staged = "" if self.staged == version else self.staged

    def to_slot(self, version: str) -> None:
        """What is loaded for nobody goes into the staging slot."""
        if version not in (self.live, self.previous):
            self.staged = version

    def brought(self, version: str) -> None:
        """What goes live is loaded first, through the slot."""
        if not self.resident(version):
            self.to_slot(version)

    def flipped(self) -> None:
        if self.staged in (self.live, self.previous):
            self.staged = ""

    @rule(operations=st.lists(OPERATIONS, min_size=2, max_size=3))
    def at_once(self, operations: list[Operation]) -> None:
        """Whatever the order in which they take their turns, it is as if one came after another."""

        async def all_of_them() -> list[bool]:
            outcomes = await asyncio.gather(
                *(self.begun(*one) for one in operations), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    assert isinstance(outcome, (NotFound, FailedPrecondition)), repr(outcome)
            return [not isinstance(outcome, BaseException) for outcome in outcomes]

        succeeded = self.run(all_of_them())
        self.settle()
        states = self.run(self.registry._catalog.changes("default", 0, 1 << 30))
        history = [(state.live_version, state.previous_version) for state in states]
        known = {record.id for record in self.registry.list_versions()}
        held = {version for version, _ in self.held}
        possible = list(in_any_order(operations, self.history, self.known, held))
        assert (history, known, succeeded) in possible
        self.history, self.known = history, known
        # Which of them took the slot last, nobody promises.
        self.staged = self.registry._slots.staged.get("default", "")

    def begun(self, what: str, version: str) -> Coroutine[Any, Any, object]:
        registry = self.registry
        if what == "load":
            return registry.load_version("", version.replace("v-", "fake:"))
        if what == "rollback":
            return registry.rollback("")
        if what == "activate":
            return registry.activate("", version)
        return registry.unload(version) if what == "unload" else registry.delete(version)

    @rule(target=pins, seed=st.one_of(st.none(), SEEDS))
    def pin(self, seed: str | None) -> tuple[Pin, str]:
        version = "" if seed is None else f"v-{seed}"
        if version and (version not in self.known or not self.resident(version)):
            with pytest.raises((NotFound, FailedPrecondition)):
                self.registry.pin(version=version)
            version = ""
        pin = self.registry.pin(version=version)
        self.open_pins.add(pin)
        assert pin.resident.version_id == (version or self.live)
        return pin, version or self.live

    @rule(pinned=consumes(pins))
    def release_pin(self, pinned: tuple[Pin, str]) -> None:
        pin, _ = pinned
        self.call(pin.release)
        self.open_pins.discard(pin)

    @rule(seed=SEEDS, holder=HOLDERS)
    def bind(self, seed: str, holder: str) -> None:
        if f"v-{seed}" in self.known:
            self.run(self.registry.bind(f"v-{seed}", holder))
            self.held.add((f"v-{seed}", holder))

    @rule(seed=SEEDS, holder=HOLDERS)
    def let_go(self, seed: str, holder: str) -> None:
        self.call(self.registry.release, f"v-{seed}", holder)
        self.held.discard((f"v-{seed}", holder))

    @rule()
    def restart(self) -> None:
        for pin in self.open_pins:
            self.call(pin.release)
        self.open_pins.clear()
        self.held.clear()
        self.staged = ""
        assert self.run(self.registry.stop())
        self.database.close()
        self.start()

    @precondition(lambda self: len(self.known) > 1)
    @rule(data=st.data())
    def crash_between_commit_and_flip(self, data: st.DataObject) -> None:
        """The process dies when the row is written and the reference is not yet set."""
        version = data.draw(st.sampled_from(sorted(self.known)))
        catalog = self.registry._catalog
        row = catalog.model("default")
        if version != row.live:
            new = row.changed(live=version, previous=row.live)
            self.run(catalog.write_flip(row, new, (), (), trial=False))
            self.old_etags.add(row.etag)
            self.history.append((version, row.live))
        self.restart()

    @rule(seed=SEEDS)
    def crash_between_files_and_row(self, seed: str) -> None:
        """The process dies when a version is stored and not yet recorded."""
        self.loader.import_source(f"fake:{seed}")
        self.restart()

    @rule(seed=SEEDS)
    def crash_between_row_and_files(self, seed: str) -> None:
        """The process dies when a version is forgotten and its files are still there."""
        version = f"v-{seed}"
        if version in (self.live, self.previous) or version not in self.known:
            return
        self.run(self.registry._stager.note_recorded(version, recorded=False))
        self.run(self.registry._catalog.remove(version))
        self.known.discard(version)
        self.restart()

    @invariant()
    def one_version_is_live(self) -> None:
        if not hasattr(self, "registry"):
            return
        self.settle()
        state = self.registry.model_state()
        assert (state.live_version, state.previous_version) == (self.live, self.previous)
        assert state.revision == len(self.history)
        assert [r.version_id for r, live in self.registry if live] == [self.live]
        records = self.registry.list_versions()
        states = [self.registry.version_state(record.id) for record in records]
        assert states.count(VersionState.LIVE) == 1
        assert states.count(VersionState.STAGED) == bool(self.staged)
        assert {record.id for record in records} == set(self.loader.stored) == self.known
        assert self.loader.unrecorded == set()
        wanted = {self.live, self.previous, self.staged, *(held for held, _ in self.held)}
        assert {resident.version_id for resident, _ in self.registry} == wanted - {""}

    @invariant()
    def pins_are_counted_and_keep_versions_open(self) -> None:
        if not hasattr(self, "registry"):
            return
        counts: dict[int, int] = {}
        for pin in self.open_pins:
            assert not pin.resident.encoder.closed  # type: ignore[attr-defined]  # the fake's
            counts[id(pin.resident)] = counts.get(id(pin.resident), 0) + 1
        for resident, _ in self.registry:
            assert resident.pins == counts.get(id(resident), 0)

    @invariant()
    def nothing_leaks(self) -> None:
        if not hasattr(self, "registry"):
            return
        self.settle()
        wanted = {resident.encoder for resident, _ in self.registry}
        wanted |= {pin.resident.encoder for pin in self.open_pins}
        assert {e for e in self.loader.loaded if not e.closed} == wanted
        assert all(encoder.closed <= 1 for encoder in self.loader.loaded)


RegistryMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestRegistryMachine = RegistryMachine.TestCase
