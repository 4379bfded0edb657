"""Room on the disk: asked for before the first step, by a run that goes on for the rest alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.jobs import ended, open_database

from hotclip_server.jobs.folders import JobFolders
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.states import JobState
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.training.checkpoints import Checkpoints
from hotclip_server.training.finetune_job import FineTuneHandler
from tests.unit.training.test_finetune_job import Desk, Shelf, place, spec
from tests.unit.training.test_resume import SLOW
from tests.unit.training.tiny import tiny_clip

WEIGHTS = 1 << 20
NEEDED = WEIGHTS * (4 * 3 + 2)
"""Of a full fine-tune that keeps two states: these and the next one, the best weights, the
result."""


class Heavy(Shelf):
    """Whose versions are larger than all that a run of a tiny model writes."""

    def read_manifest(self, version_id: str) -> VersionManifest:
        return SimpleNamespace(size_bytes=WEIGHTS)  # type: ignore[return-value]  # only its size is read


async def test_what_a_run_has_written_is_room_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)

    def leave(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))

    database, folder = open_database(tmp_path), tmp_path / "checkpoints"
    handler = FineTuneHandler(place(Heavy({"base": tiny_clip()}), database), Desk())
    runner = JobRunner(database, [handler], folders=JobFolders(folder))
    await runner.start()
    asked = NewJob(kind=JobKind.FINE_TUNE, spec=replace(spec(), config=SLOW).to_json())
    leave(NEEDED - 1)
    refused = await ended(runner, (await runner.submit(asked)).id)
    assert refused.error is not None
    assert refused.error.reason == "DISK_FULL"

    leave(NEEDED)
    job = (await runner.submit(asked)).id
    async for event in runner.watch(job):
        if event.checkpoint.best:
            break
    await runner.cancel(job)
    assert (await ended(runner, job)).state is JobState.CANCELLED
    written = sum(path.stat().st_size for path in (folder / job).rglob("*") if path.is_file())
    (folder / job / "candidates").mkdir()
    (folder / job / "candidates" / "images").write_bytes(bytes(1000))  # not of what is asked for
    assert Checkpoints(folder / job, 2).size_bytes == written > 0

    leave(NEEDED - written - 1)
    await runner.resume(job)
    refused = await ended(runner, job)
    assert refused.error is not None
    assert refused.error.reason == "DISK_FULL"
    leave(NEEDED - written)
    await runner.resume(job)
    record = await ended(runner, job)
    await runner.stop()
    database.close()
    assert record.state is JobState.SUCCEEDED, record.error
