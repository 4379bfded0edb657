"""A hypothesis state machine of collections and versions: writes, reindexes step by step, flips,
rollbacks, restarts and crashes in any order, against a plain dictionary of what must be stored.
Registry, database and vector engine are real; the engine runs in this process.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.local_store import Died, LocalStore
from support.search import item_vector, picture, search_world

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.errors import FailedPrecondition
from hotclip_server.jobs import store as job_store
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.states import JobState
from hotclip_server.search import records, reindex
from hotclip_server.search.records import CollectionRecord
from hotclip_server.search.searcher import SearchOptions
from hotclip_server.testing import FakeLoader

T = TypeVar("T")

KEEPS = {"kept": True, "pictures": False}
"""Collections, and whether they keep sources."""
SEEDS = ["one", "two", "tuned@one", "again@one"]
IDS = [f"p{n}" for n in range(6)]
QUERY = EncodeItem(text="a query")

NAMES = st.sampled_from(sorted(KEEPS))
VERSIONS = st.integers(0, len(SEEDS) - 1)
CONTENTS = st.one_of(
    st.integers(0, 3).map(lambda n: ("image", n)), st.integers(0, 3).map(lambda n: ("text", n))
)
PICTURES = st.integers(0, 3).map(lambda n: ("image", n))
CALLS_LEFT = st.one_of(st.none(), st.none(), st.integers(0, 4))
"""Of the vector store, until the process dies; mostly it lives."""

Content = tuple[str, int]


def item_of(content: Content) -> EncodeItem:
    kind, number = content
    return EncodeItem(text=f"text {number}") if kind == "text" else picture(number)


class ReindexMachine(RuleBasedStateMachine):
    """`points` is what every shard that takes part in writes must hold."""

    @initialize()
    def begin(self) -> None:
        self.limits = (reindex._ROWS, reindex._LOOK_ROWS, reindex._LOOKS)
        reindex._ROWS, reindex._LOOK_ROWS, reindex._LOOKS = 2, 2, 2
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.loader = FakeLoader()
        self.points: dict[str, dict[str, Content]] = {name: {} for name in KEEPS}
        self.jobs: dict[str, tuple[str, str, int]] = {}
        """Id, version and revision of the reindex of a collection."""
        self.start()
        for name, keep in KEEPS.items():
            self.run(self.world.collections.catalogue.create(name, keep_sources=keep))
        self.versions = [self.world.live]
        for seed in SEEDS[1:]:
            self.versions.append(self.run(self.world.load(seed)))

    def start(self) -> None:
        folder = Path(self.folder.name)
        self.store = LocalStore(folder / "vectors")
        self.context = search_world(folder, self.loader, store=self.store, run_jobs=False)
        self.world = self.run(self.context.__aenter__())
        self.reindexer = self.world.collections.reindexer

    def stop(self) -> None:
        self.run(self.context.__aexit__(None, None, None))

    def teardown(self) -> None:
        if hasattr(self, "world"):
            reindex._ROWS, reindex._LOOK_ROWS, reindex._LOOKS = self.limits
            self.stop()
            self.loop.close()
            self.folder.cleanup()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def record(self, name: str) -> CollectionRecord:
        return self.world.collections.catalogue.get(name)

    def settle(self) -> None:
        tasks = self.world.collections.catalogue._tasks
        while tasks:
            self.run(asyncio.wait(set(tasks)))  # type: ignore[arg-type]  # any awaitable

    @rule()
    def restart(self) -> None:
        self.stop()
        self.start()
        for name, (job, version, revision) in list(self.jobs.items()):
            step = self.run(self.reindexer._begin(name, version))
            assert step.revision <= revision
            if step.ended:
                self.end_job(name)
            else:
                self.jobs[name] = (job, version, step.revision)

    def crash(self, unsure: Mapping[str, Mapping[str, Content | None]]) -> None:
        """Of the points of `unsure` either the old or this state must be found."""
        self.store.calls_left = 0
        self.restart()
        for name, changes in unsure.items():
            found = self.search(name)
            for point, content in changes.items():
                old = self.points[name].pop(point, None)
                assert found.get(point) in (old, content)
                if point in found:
                    self.points[name][point] = found[point]

    def search(self, name: str) -> dict[str, Content]:
        """Every point by a search, whose scores are checked."""
        query = search_pb2.Query(item=QUERY)
        options = SearchOptions(limit=100, exact=True)
        found = self.run(self.world.collections.searcher.search(name, [query], options))
        encoder = self.loader.encoders[found.version]
        assert (found.version, found.space_id) == (
            self.record(name).version,
            encoder.spec.space_id,
        )
        contents = {m.id: (m.payload["kind"], int(m.payload["number"])) for m in found.matches[0]}
        for match in found.matches[0]:
            vector = item_vector(encoder, item_of(contents[match.id]))
            assert match.score == pytest.approx(vector @ item_vector(encoder, QUERY), abs=1e-5)
        return contents

    def write(
        self, name: str, changes: Mapping[str, Content | None], work: Any, calls_left: int | None
    ) -> None:
        self.store.calls_left = calls_left
        try:
            self.run(work)
        except Died:
            self.crash({name: changes})
            return
        self.store.calls_left = None
        for point, content in changes.items():
            self.points[name].pop(point, None)
            if content is not None:
                self.points[name][point] = content

    @rule(
        changes=st.dictionaries(st.sampled_from(IDS), CONTENTS, min_size=1),
        calls_left=CALLS_LEFT,
    )
    def upsert(self, changes: dict[str, Content], calls_left: int | None) -> None:
        self.store_points("kept", changes, calls_left)

    @rule(
        changes=st.dictionaries(st.sampled_from(IDS), PICTURES, min_size=1),
        calls_left=CALLS_LEFT,
    )
    def upsert_pictures(self, changes: dict[str, Content], calls_left: int | None) -> None:
        self.store_points("pictures", changes, calls_left)

    @rule(point=st.sampled_from(IDS))
    def upsert_a_text_among_pictures(self, point: str) -> None:
        self.store_points("pictures", {point: ("text", 0)}, None)

    def store_points(self, name: str, changes: dict[str, Content], calls_left: int | None) -> None:
        points = []
        for point, content in changes.items():
            packed = search_pb2.Point(id=point, item=item_of(content))
            packed.payload.update({"kind": content[0], "number": content[1]})
            points.append(packed)
        work = self.world.collections.writer.upsert(name, points)
        self.write(name, changes, work, calls_left)

    @rule(name=NAMES, ids=st.sets(st.sampled_from(IDS), min_size=1), calls_left=CALLS_LEFT)
    def delete(self, name: str, ids: set[str], calls_left: int | None) -> None:
        work = self.world.collections.writer.delete(name, sorted(ids))
        self.write(name, dict.fromkeys(ids), work, calls_left)

    @rule(name=NAMES, number=VERSIONS)
    def begin_reindex(self, name: str, number: int) -> None:
        if name in self.jobs:
            return
        version, before = self.versions[number], self.record(name)
        spec = {"collection": name, "version": version}
        new = NewJob(kind=JobKind.REINDEX, spec=spec)
        job, _ = self.run(self.world.database.run(lambda c: job_store.create(c, new)))
        self.jobs[name] = (job.id, version, 0)
        if self.lacks_sources(before, version):
            with pytest.raises(FailedPrecondition) as refused:
                self.run(self.reindexer._begin(name, version))
            assert refused.value.reason == "SOURCES_MISSING"
            assert refused.value.metadata["points"] == str(len(self.points[name]))
            self.end_job(name)
            return
        step = self.run(self.reindexer._begin(name, version))
        if step.ended:
            nothing = not self.points[name] or self.changes_nothing(before, version)
            ready = before.shadow_version == version and before.shadow_complete
            assert version == before.version or nothing or ready
            self.end_job(name)
        else:
            self.jobs[name] = (job.id, version, step.revision)

    def lacks_sources(self, record: CollectionRecord, version: str) -> bool:
        if KEEPS[record.name] or version == record.version or not self.points[record.name]:
            return False
        nothing = self.changes_nothing(record, version)
        return not (nothing and self.world.live in (record.version, version))

    def end_job(self, name: str) -> None:
        job, _, _ = self.jobs.pop(name)
        self.run(self.world.database.run(lambda c: job_store.set_state(c, job, JobState.FAILED)))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), times=st.integers(1, 4), calls_left=CALLS_LEFT)
    def go_on(self, data: st.DataObject, times: int, calls_left: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        for _ in range(times):
            job, version, revision = self.jobs[name]
            self.store.calls_left = calls_left
            try:
                step = self.run(self.reindexer._step(name, version, revision))
            except Died:
                self.crash({})
                return
            self.store.calls_left = None
            if step.ended:
                record = self.record(name)
                assert version == record.version or record.shadow_complete
                self.end_job(name)
                return
            assert step.revision >= revision
            self.jobs[name] = (job, version, step.revision)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def note_progress(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        _, version, revision = self.jobs[name]
        self.run(self.reindexer._note(name, version, revision))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        self.run(self.reindexer._give_up(name, self.jobs[name][1]))
        self.end_job(name)

    @rule(number=VERSIONS, names=st.sets(NAMES, max_size=1), crash=st.booleans())
    def activate(self, number: int, names: set[str], crash: bool) -> None:
        version = self.versions[number]
        expected = self.after_flip(version, sorted(names))
        if expected is None:
            with pytest.raises(FailedPrecondition) as veto:
                self.run(self.world.registry.activate("", version, collections=sorted(names)))
            assert veto.value.reason == "SHADOW_INCOMPLETE"
            return
        if crash and version != self.world.live:
            self.crash_in_a_flip(version, sorted(names))
        else:
            self.run(self.world.registry.activate("", version, collections=sorted(names)))
        assert self.world.live == version
        assert {name: self.record(name).version for name in KEEPS} == expected

    @rule(crash=st.booleans())
    def rollback(self, crash: bool) -> None:
        previous = self.world.registry.model_state().previous_version
        if not previous:
            return
        expected = self.after_flip(previous, [])
        if crash:
            self.crash_in_a_flip(previous, [])
        else:
            self.run(self.world.registry.rollback(""))
        assert self.world.live == previous
        assert {name: self.record(name).version for name in KEEPS} == expected

    @rule(number=VERSIONS)
    def there_and_back(self, number: int) -> None:
        """What was in step with the live version is so again."""
        live, version = self.world.live, self.versions[number]
        if version == live:
            return
        in_step = [name for name in KEEPS if self.record(name).version == live]
        self.run(self.world.registry.activate("", version))
        self.every_shard_holds_what_was_acknowledged()
        self.run(self.world.registry.rollback(""))
        assert [name for name in in_step if self.record(name).version != live] == []

    @rule(number=VERSIONS)
    def unload(self, number: int) -> None:
        version = self.versions[number]
        bound = [self.record(name) for name in KEEPS]
        held = {v for r in bound for v in (r.version, r.shadow_version)}
        if version in {*held, self.world.live}:
            with pytest.raises(FailedPrecondition):
                self.run(self.world.registry.unload(version))
        else:
            self.run(self.world.registry.unload(version))

    def changes_nothing(self, record: CollectionRecord, version: str) -> bool:
        old, new = (self.loader.encoders[v].spec for v in (record.version, version))
        texts = not record.has_texts or old.text_encoder_id == new.text_encoder_id
        images = not record.has_images or old.vision_encoder_id == new.vision_encoder_id
        return texts and images

    def after_flip(self, version: str, names: Sequence[str]) -> dict[str, str] | None:
        """The version of each collection; None: it must be refused."""
        live, found = self.world.live, {}
        for name in KEEPS:
            record = self.record(name)
            ready = record.shadow_version == version and record.shadow_complete
            back = record.previous_version == version
            follows = record.version == live and self.changes_nothing(record, version)
            if name in names and not (ready or back or follows or record.version == version):
                return None
            taken = follows or back or (ready and (not names or name in names))
            found[name] = version if taken else record.version
        return found

    def crash_in_a_flip(self, version: str, names: Sequence[str]) -> None:
        """The process dies when the transaction has committed and nothing shows yet."""
        catalog = self.world.registry._catalog
        row = catalog.model("default")
        if version != row.live:
            new = row.changed(live=version, previous=row.live)
            participants = (self.world.collections.catalogue,)
            self.run(catalog.write_flip(row, new, participants, names, trial=False))
        self.crash({})

    @invariant()
    def every_shard_holds_what_was_acknowledged(self) -> None:
        if not hasattr(self, "versions"):
            return
        self.settle()
        used: set[str] = set()
        for name in KEEPS:
            record = self.record(name)
            used |= set(record.targets().values())
            assert record == self.run(
                self.world.database.run(lambda c, name=name: records.read(c, name))  # type: ignore[misc]
            )
            kinds = {kind for kind, _ in self.points[name].values()}
            assert record.has_texts or "text" not in kinds
            assert record.has_images or "image" not in kinds
            assert self.search(name) == self.points[name]
            for version, shard in record.targets().items():
                growing = version == record.shadow_version and not record.shadow_complete
                self.check_shard(name, version, shard, growing=growing)
        assert set(self.run(self.store.shards())) == used

    def check_shard(self, name: str, version: str, shard: str, *, growing: bool) -> None:
        stored = self.run(self.store.retrieve(shard, IDS, with_vectors=True))
        points, done = self.points[name], set(self.points[name])
        if growing:
            # So much is there as the job says.
            live = self.run(self.store.retrieve(self.record(name).shard, IDS))
            reached = self.jobs[name][2]
            done = {point for point, revision in live.revisions.items() if revision <= reached}
        assert done <= set(stored.vectors) <= set(points)
        encoder = self.loader.encoders[version]
        for point in done:
            expected = item_vector(encoder, item_of(points[point]))
            np.testing.assert_allclose(stored.vectors[point], expected, atol=1e-5)

    @invariant()
    def bound_versions_stay_in_memory(self) -> None:
        if not hasattr(self, "versions"):
            return
        wanted: dict[str, set[str]] = {}
        for name in KEEPS:
            record = self.record(name)
            wanted.setdefault(record.version, set()).add(f"collection:{name}")
            if record.shadow_version:
                wanted.setdefault(record.shadow_version, set()).add(f"shadow:{name}")
        held = {r.version_id: r.holders for r, _ in self.world.registry if r.holders}
        assert held == wanted


ReindexMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestReindexMachine = pytest.mark.timeout(900)(ReindexMachine.TestCase)
