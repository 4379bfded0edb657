"""A run that was broken off ends as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.jobs import all_events, ended, kinds

from hotclip_proto.v1 import job_pb2
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.folders import JobFolders
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.specs import EarlyStopping, FineTuneSpec
from hotclip_server.jobs.states import JobState
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.storage.database import Database
from hotclip_server.training.checkpoints import library_versions
from hotclip_server.training.config import LoraConfig, MetricLossConfig
from hotclip_server.training.events import EpochEnd, Step
from hotclip_server.training.finetune_job import FineTuneHandler
from hotclip_server.training.trainer import Trainer
from tests.unit.training.test_finetune_job import CONFIG, Desk, Shelf, place, spec
from tests.unit.training.tiny import colours, tiny_clip, weights

ROOT = Path(__file__).parents[3]
KILLS = 20
SLOW = replace(CONFIG, max_steps=None, epochs=40, chunk_size=2)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    yield database
    database.close()


def runner_of(database: Database, shelf: Shelf, folder: Path) -> JobRunner:
    handler = FineTuneHandler(place(shelf, database), Desk())
    return JobRunner(database, [handler], folders=JobFolders(folder / "checkpoints"))


async def submitted(runner: JobRunner, asked: FineTuneSpec) -> str:
    job = await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=asked.to_json()))
    return job.id


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plan", ["chunks", "parts", "process"])
def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path: Path, plan: str) -> None:
    output = subprocess.run(
        [sys.executable, "-m", "support.killed", str(tmp_path), "7", str(KILLS), plan],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT), *sys.path]),
            "OMP_NUM_THREADS": "1",
        },
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    found = json.loads(output.splitlines()[-1])
    plain, killed = found["plain"], found["killed"]
    assert found["kills"] >= KILLS, "the run ended before it was killed often enough"
    assert found["servers"] >= (3 if plan == "process" else KILLS)
    assert plain["state"] == killed["state"] == "SUCCEEDED", killed["error"]
    assert killed["digest"] == plain["digest"]
    assert plain["in_parts"] == (plan == "parts")
    assert plain["seqs"]
    assert killed["seqs"], "an event is lost or doubled"
    assert killed["from_steps"] == sorted(killed["from_steps"])
    assert killed["from_steps"][-1] > 0
    assert killed["attempts"] == sorted(set(killed["attempts"]))
    assert plain["left"] == killed["left"] == []


async def test_a_cancelled_run_keeps_its_state_and_may_go_on(
    database: Database, tmp_path: Path
) -> None:
    asked = replace(spec(), config=SLOW)
    plain, broken = Shelf({"base": tiny_clip()}), Shelf({"base": tiny_clip()})
    runner = runner_of(database, plain, tmp_path)
    await runner.start()
    whole = await ended(runner, await submitted(runner, asked))
    assert whole.state is JobState.SUCCEEDED, whole.error
    await runner.stop()

    runner = runner_of(database, broken, tmp_path)
    await runner.start()
    job = await submitted(runner, asked)
    async for event in runner.watch(job):
        if event.metric.stage == job_pb2.MetricEvent.STAGE_EPOCH:
            break
    await runner.cancel(job)
    assert (await ended(runner, job)).state is JobState.CANCELLED
    events = await all_events(runner, job)
    assert kinds(events)[-1] == "CANCELLED"
    kept = [event.checkpoint.step for event in events if event.HasField("checkpoint")]
    told = [e.metric.step for e in events if e.metric.stage == job_pb2.MetricEvent.STAGE_STEP]
    assert kept[-1] >= told[-1]
    assert kinds(events).count("CANCELLING") == 1
    told = kinds(events)[kinds(events).index("CANCELLING") :]
    assert told.count("metric") <= 1, "it goes on after it was cancelled"
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert folder.name == job
    assert len(list(folder.glob("state-*"))) == asked.keep_checkpoints
    stopped_at = next(e.checkpoint.step for e in reversed(events) if e.HasField("checkpoint"))

    await runner.resume(job)
    record = await ended(runner, job)
    assert record.state is JobState.SUCCEEDED, record.error
    later = await all_events(runner, job, after=len(events))
    (resumed,) = [event.resumed for event in later if event.HasField("resumed")]
    assert (resumed.from_step, resumed.attempt) == (stopped_at, 2)
    steps = [e.metric.step for e in later if e.metric.stage == job_pb2.MetricEvent.STAGE_STEP]
    assert steps[0] > stopped_at
    first, second = plain.saved[0].model.state_dict(), broken.saved[0].model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    await runner.stop()
    assert list((tmp_path / "checkpoints").iterdir()) == []


async def test_a_state_that_is_there_is_not_written_again(
    database: Database, tmp_path: Path
) -> None:
    held, steps = threading.Event(), list[int]()

    class Held(FineTuneHandler):
        """Stands after a state was written until it was cancelled."""

        def run(self, job: JobContext) -> JobResult:
            write = job.checkpoint

            def checkpoint(**told: Any) -> None:
                write(**told)
                if told["step"] >= 3 and not held.is_set():
                    steps.append(told["step"])
                    held.set()
                    while not job.cancelled:
                        time.sleep(0.005)

            job.checkpoint = checkpoint  # type: ignore[method-assign]
            return super().run(job)

    handler = Held(place(Shelf({"base": tiny_clip()}), database), Desk())
    runner = JobRunner(database, [handler], folders=JobFolders(tmp_path / "checkpoints"))
    await runner.start()
    job = await submitted(runner, replace(spec(), config=SLOW))
    assert await asyncio.to_thread(held.wait, 30)
    await runner.cancel(job)
    assert (await ended(runner, job)).state is JobState.CANCELLED
    events = await all_events(runner, job)
    await runner.stop()
    assert [e.checkpoint.step for e in events if e.HasField("checkpoint")].count(*steps) == 1


@pytest.mark.parametrize("library", ["hotclip", "torch"])
async def test_other_versions_than_it_began_with_are_told(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    runner = runner_of(database, Shelf({"base": tiny_clip()}), tmp_path)
    await runner.start()
    job = await submitted(runner, replace(spec(), config=replace(SLOW, epochs=8)))
    async for event in runner.watch(job):
        if event.HasField("checkpoint"):
            break
    await runner.cancel(job)
    await ended(runner, job)
    known = {**library_versions(), library: "99.1"}
    monkeypatch.setattr("hotclip_server.training.checkpoints.version", known.__getitem__)
    await runner.resume(job)
    assert (await ended(runner, job)).state is JobState.SUCCEEDED
    events = await all_events(runner, job)
    await runner.stop()
    told = [e.log.message for e in events if e.log.level == job_pb2.LogEvent.LEVEL_WARNING]
    (line,) = [line for line in told if "results may differ" in line]
    began, _, goes_on = line.partition(" and goes on with ")
    assert f"{library} 99.1" in goes_on
    assert f"{library} 99.1" not in began


async def test_it_stops_early_and_keeps_the_best_epoch(database: Database, tmp_path: Path) -> None:
    # The loss on the wrong side: what grows is called worse, so no epoch after the first counts.
    rule = EarlyStopping(monitor="epoch_loss", patience=3, min_delta=0.0, higher=True)
    asked = replace(spec(), config=replace(SLOW, learning_rate=1e-3), early_stopping=rule)
    shelf = Shelf({"base": tiny_clip()})
    runner = runner_of(database, shelf, tmp_path)
    await runner.start()
    job = await submitted(runner, asked)
    record = await ended(runner, job)
    events = await all_events(runner, job)
    await runner.stop()
    assert record.state is JobState.SUCCEEDED, record.error
    epochs = [
        {metric.name: metric.value for metric in event.metric.metrics}
        for event in events
        if event.metric.stage == job_pb2.MetricEvent.STAGE_EPOCH
    ]
    assert 4 <= len(epochs) < 40
    assert any("stopped early: epoch_loss" in event.log.message for event in events)
    assert record.metrics["monitor"] == max(epoch["monitor"] for epoch in epochs)


async def test_stopped_early_with_nothing_held_out_it_keeps_the_average(
    database: Database, tmp_path: Path
) -> None:
    rule = EarlyStopping(monitor="epoch_loss", patience=3, min_delta=0.0, higher=True)
    config = replace(SLOW, learning_rate=1e-3, ema=0.5)
    asked = replace(spec(held_out=False), config=config, early_stopping=rule)
    shelf = Shelf({"base": tiny_clip()})
    runner = runner_of(database, shelf, tmp_path)
    await runner.start()
    job = await submitted(runner, asked)
    record = await ended(runner, job)
    events = await all_events(runner, job)
    await runner.stop()
    assert record.state is JobState.SUCCEEDED, record.error
    told = sum(e.metric.stage == job_pb2.MetricEvent.STAGE_EPOCH for e in events)
    assert 4 <= told < 40
    clip = tiny_clip()
    run = Trainer(clip, colours(12), config).run()
    while not (isinstance(event := next(run), EpochEnd) and event.epoch == told):
        pass
    average, kept = weights(clip), weights(shelf.saved[0])  # it holds the average now
    for name, tensor in average.items():
        torch.testing.assert_close(kept[name], tensor, rtol=0, atol=1e-7)


async def test_a_soup_is_no_worse_than_its_best_member(database: Database, tmp_path: Path) -> None:
    shelf = Shelf({"base": tiny_clip()})
    runner = runner_of(database, shelf, tmp_path)
    await runner.start()
    job = await submitted(runner, replace(spec(), config=replace(SLOW, epochs=8), soup=3))
    record = await ended(runner, job)
    events = await all_events(runner, job)
    await runner.stop()
    assert record.state is JobState.SUCCEEDED, record.error
    monitors = [
        metric.value
        for event in events
        if event.metric.stage == job_pb2.MetricEvent.STAGE_EPOCH
        for metric in event.metric.metrics
        if metric.name == "monitor"
    ]
    assert record.metrics["monitor"] >= max(monitors)
    assert any("averaged the weights" in event.log.message for event in events)


async def test_a_full_disk_is_known_before_the_first_step(
    database: Database, tmp_path: Path
) -> None:
    shelf = Shelf({"base": tiny_clip()})
    full = replace(place(shelf, database), min_free_disk_bytes=1 << 60)
    runner = JobRunner(database, [FineTuneHandler(full, Desk())])
    await runner.start()
    record = await ended(runner, await submitted(runner, spec()))
    await runner.stop()
    assert record.error is not None
    assert record.error.reason == "DISK_FULL"
    assert shelf.saved == []


@pytest.mark.parametrize(
    ("resnet", "changes"),
    [
        (False, {}),
        (True, {}),
        (False, {"method": "lora", "lora": LoraConfig(dora=True, targets=("q", "v", "mlp"))}),
        (False, {"method": "projection", "ema": 0.0}),
        (False, {"optimizer": "sgd", "learning_rate": 0.1}),
        (False, {"optimizer": "adam", "preserve": 1.0, "lock_text": True}),
        (
            False,
            {"loss": "metric", "metric_loss": MetricLossConfig(name="NCALoss", items_per_class=2)},
        ),
    ],
)
def test_a_restored_run_takes_the_same_steps(resnet: bool, changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **{"ema": 0.5, **changes})
    whole = tiny_clip(resnet=resnet)
    list(Trainer(whole, colours(12), config).run())
    first = Trainer(tiny_clip(resnet=resnet), colours(12), config)
    run = first.run()
    for event in run:
        if isinstance(event, Step) and event.step == 5:
            break
    second_clip = tiny_clip(resnet=resnet)
    second = Trainer(second_clip, colours(12), config)
    kept = first.snapshot()
    second.restore(
        replace(
            kept,
            # As they come from a file.
            optimizer={name: tensor.contiguous() for name, tensor in kept.optimizer.items()},
        )
    )
    run.close()
    events = list(second.run())
    assert [e.step for e in events if isinstance(e, Step)] == list(range(6, 13))
    expected = weights(whole)
    assert all(torch.equal(expected[n], tensor) for n, tensor in weights(second_clip).items())


async def test_what_a_crash_left_of_other_jobs_is_removed(
    database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "job-gone").mkdir(parents=True)
    runner = runner_of(database, Shelf({"base": tiny_clip()}), tmp_path)
    job = await submitted(runner, spec())
    (folder / job).mkdir()
    await runner.recover()
    assert [path.name for path in folder.iterdir()] == [job]
    await runner.cancel(job)
    await runner.delete(job)
    assert list(folder.iterdir()) == []
    await asyncio.sleep(0)


class Counting(Shelf):
    """Notes how many threads torch has where a version is stored."""

    def save_trained(self, model: torch.nn.Module, *, base: str, source: str) -> VersionManifest:
        self.threads = torch.get_num_threads()
        return super().save_trained(model, base=base, source=source)


async def test_a_run_that_goes_on_has_the_threads_that_it_had_and_the_next_one_its_own(
    database: Database, tmp_path: Path
) -> None:
    shelf, usual = Counting({"base": tiny_clip()}), torch.get_num_threads()
    runner = runner_of(database, shelf, tmp_path)
    await runner.start()
    job = await submitted(runner, replace(spec(), config=SLOW))
    async for event in runner.watch(job):
        if event.HasField("checkpoint"):
            break
    await runner.cancel(job)
    assert (await ended(runner, job)).state is JobState.CANCELLED
    await runner.stop()
    torch.set_num_threads(usual + 1)  # as on another machine
    try:
        runner = runner_of(database, shelf, tmp_path)
        await runner.start()
        for expected in (usual, usual + 1):
            if expected == usual:
                await runner.resume(job)
            else:
                job = await submitted(runner, spec())
            record = await ended(runner, job)
            assert record.state is JobState.SUCCEEDED, record.error
            assert shelf.threads == expected
        await runner.stop()
    finally:
        torch.set_num_threads(usual)
