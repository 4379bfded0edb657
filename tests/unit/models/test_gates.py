"""What must have been measured before a version goes live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from support.registry import load, pinned
from support.versions import FakeLoader

from hotclip_server.errors import FailedPrecondition, NotFound
from hotclip_server.jobs import store as jobs
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.states import JobState
from hotclip_server.models.gates import MetricGate
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.storage import schema
from hotclip_server.storage.database import Database

DATASET = "d" * 16
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def database(registry: ModelRegistry, tmp_path: Path) -> Iterator[Database]:
    """The registry's, by a connection of its own, with one dataset."""
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    names = ("pairs", "images", "texts", "groups", "labels", "uncaptioned_pairs")
    counts = dict.fromkeys((*names, "pairs_with_negatives", "duplicate_pairs", "size_bytes"), 1)
    with database.transaction() as connection:
        connection.execute(
            sa.insert(schema.datasets).values(
                id=DATASET, name="photos", create_time=NOON, report={}, **counts
            )
        )
    yield database
    database.close()


def measured(
    database: Database,
    version: str,
    metrics: Mapping[str, float],
    *,
    state: JobState = JobState.SUCCEEDED,
    minute: int = 0,
    **settings: Any,
) -> None:
    """An evaluation as the job of it leaves it."""
    spec = {"version": version, "dataset": DATASET, "k": 20, "compat": "standard", **settings}
    with database.transaction() as connection:
        job, _ = jobs.create(connection, NewJob(kind=JobKind.EVALUATE, spec=spec))
        connection.execute(
            sa.update(schema.jobs)
            .where(schema.jobs.c.id == job.id)
            .values(
                state=state.value,
                metrics=dict(metrics),
                end_time=NOON + timedelta(minutes=minute),
            )
        )


async def refused(registry: ModelRegistry, *gates: MetricGate, validate_only: bool = False) -> str:
    """The reason for which v-b does not go live."""
    with pytest.raises(FailedPrecondition) as caught:
        await registry.activate("", "v-b", gates=gates, validate_only=validate_only)
    assert pinned(registry) == "v-a"
    return caught.value.reason


async def test_bounds_on_what_was_measured_when_it_was_made(
    registry: ModelRegistry, loader: FakeLoader
) -> None:
    manifest = loader.import_source("fake:b")
    await registry.register("", manifest, {"monitor": 0.5, "validation_loss": 1.5})
    assert await refused(registry, MetricGate(metric="hit_at_1", at_least=0)) == "GATE_NOT_MEASURED"
    for gate in (
        MetricGate(metric="monitor", at_least=0.51),
        MetricGate(metric="validation_loss", at_most=1.4),
        MetricGate(metric="monitor", at_least=0.4, at_most=0.45),
    ):
        assert await refused(registry, gate) == "GATE_NOT_REACHED"
        assert await refused(registry, gate, validate_only=True) == "GATE_NOT_REACHED"
    assert loader.loads == ["v-a"], "what may not go live is not loaded"
    reached = [
        MetricGate(metric="monitor", at_least=0.5),
        MetricGate(metric="validation_loss", at_most=1.5),
    ]
    assert (await registry.activate("", "v-b", gates=reached)).live_version == "v-b"


async def test_the_newest_evaluation_counts(registry: ModelRegistry, database: Database) -> None:
    await load(registry, "b")
    for dataset in (DATASET, "photos"):
        gate = MetricGate(metric="monitor", dataset=dataset, at_least=0.5)
        assert await refused(registry, gate) == "GATE_NOT_MEASURED"
    measured(database, "v-b", {"monitor": 0.9}, state=JobState.FAILED)
    measured(database, "v-a", {"monitor": 0.9})
    assert await refused(registry, gate) == "GATE_NOT_MEASURED"
    measured(database, "v-b", {"monitor": 0.9}, minute=1)
    measured(database, "v-b", {"monitor": 0.4}, minute=2)
    assert await refused(registry, gate) == "GATE_NOT_REACHED"
    measured(database, "v-b", {"monitor": 0.6}, minute=3)
    assert (await registry.activate("", "v-b", gates=[gate])).live_version == "v-b"
    nowhere = MetricGate(metric="monitor", dataset="nowhere", at_least=0.5)
    with pytest.raises(NotFound, match="nowhere"):
        await registry.activate("", "v-a", gates=[nowhere])


@pytest.mark.parametrize(
    ("higher", "theirs", "ours", "margin", "passes"),
    [
        (True, 0.5, 0.5, 0.0, True),
        (True, 0.5, 0.49, 0.0, False),
        (True, 0.5, 0.49, 0.02, True),
        (False, 1.0, 0.9, 0.0, True),
        (False, 1.0, 1.1, 0.0, False),
        (False, 1.0, 1.1, 0.2, True),
        (True, 0.5, float("nan"), 1.0, False),
    ],
)
async def test_no_worse_than_the_live_version(
    registry: ModelRegistry,
    database: Database,
    higher: bool,
    theirs: float,
    ours: float,
    margin: float,
    passes: bool,
) -> None:
    await load(registry, "b")
    gate = MetricGate(metric="m", dataset="photos", live_margin=margin, higher_is_better=higher)
    measured(database, "v-b", {"m": ours})
    assert await refused(registry, gate) == "GATE_NOT_MEASURED"
    measured(database, "v-a", {"m": theirs}, k=5)  # with other settings: no comparison
    assert await refused(registry, gate) == "GATE_NOT_MEASURED"
    measured(database, "v-a", {"m": theirs}, alphas=[0.5], base_version="v-b", minute=-1)
    if passes:
        assert (await registry.activate("", "v-b", gates=[gate])).live_version == "v-b"
        # Nothing is compared with itself.
        await registry.activate("", "v-b", gates=[gate])
    else:
        assert await refused(registry, gate) == "GATE_NOT_REACHED"


async def test_it_is_compared_with_what_is_replaced(
    registry: ModelRegistry, database: Database
) -> None:
    """The version that is live when its turn comes, not the one that was when it was asked."""
    for seed in "bc":
        await load(registry, seed)
        registry.retain(f"v-{seed}", "test")
    for version, value in (("v-a", 0.1), ("v-b", 0.5), ("v-c", 0.9)):
        measured(database, version, {"monitor": value})
    gate = MetricGate(metric="monitor", dataset="photos", live_margin=0.0)
    async with registry._slots._flipping:
        first = asyncio.create_task(registry.activate("", "v-c"))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(registry.activate("", "v-b", gates=[gate]))
        await asyncio.sleep(0.05)
        assert not waiting.done()
    await first
    with pytest.raises(FailedPrecondition) as caught:
        await waiting
    assert caught.value.reason == "GATE_NOT_REACHED"
    assert registry.model_state().live_version == "v-c"


async def test_a_version_that_is_deleted_while_its_gate_is_looked_at(
    registry: ModelRegistry, loader: FakeLoader
) -> None:
    await registry.register("", loader.import_source("fake:b"), {"monitor": 0.5})
    catalog = registry._catalog
    check = catalog.check

    async def late(work: Callable[[Connection], None]) -> None:
        await registry.delete("v-b")
        await check(work)

    catalog.check = late  # type: ignore[method-assign]  # between the two looks of an activation
    gate = MetricGate(metric="monitor", at_least=0.5)
    with pytest.raises(NotFound, match="version: ") as gone:
        await registry.activate("", "v-b", gates=[gate])
    assert gone.value.reason == "VERSION_NOT_FOUND"
    assert pinned(registry) == "v-a"
