"""A version knows what the job that made it was told, also when the job is gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from support.registry import load, running
from support.versions import FakeLoader

from hotclip_server.jobs import store as jobs
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.states import JobState
from hotclip_server.storage.database import Database

SPEC = {
    "model": "default",
    "base_version": "v-a",
    "train_dataset": "t" * 16,
    "eval_dataset": "",
    "query_dataset": "q" * 16,
    "index_dataset": "i" * 16,
    "datasets": ["i" * 16, "q" * 16, "t" * 16],
    "config": {"learning_rate": 1e-4, "epochs": 3},
    "wise_ft": None,
}


async def test_data_and_settings_outlive_the_job(tmp_path: Path, loader: FakeLoader) -> None:
    async with running(tmp_path, loader) as registry:
        database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
        database.open()
        with database.transaction() as connection:
            job, _ = jobs.create(connection, NewJob(kind=JobKind.FINE_TUNE, spec=SPEC))
        manifest = replace(loader.import_source("fake:b"), source=f"job:{job.id}", parent="v-a")
        made = (await registry.register("", manifest, {"monitor": 0.5})).lineage
        assert made is not None
        assert made.job == job.id
        assert made.datasets == {"train": "t" * 16, "query": "q" * 16, "index": "i" * 16}
        assert made.config == {"config": SPEC["config"], "wise_ft": None}
        with database.transaction() as connection:
            jobs.set_state(connection, job.id, JobState.CANCELLED)
            jobs.delete(connection, job.id)
        database.close()
        # The same weights again are the same version, of which more was measured.
        again = await registry.register("", manifest, {"monitor": 0.6})
        assert (again.lineage, again.metrics) == (made, {"monitor": 0.6})
        gone = replace(loader.import_source("fake:c"), source=f"job:{job.id}")
        assert (await registry.register("", gone)).lineage is None
        assert registry.get_version(await load(registry, "d")).lineage is None
    async with running(tmp_path, loader) as registry:
        assert registry.get_version("v-b").lineage == made
