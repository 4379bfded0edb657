"""Trackers are told what the log says, hold up nothing, and may do what they like."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.jobs import Handler, all_events, ended, new_job, open_database

from hotclip_proto.v1 import job_pb2
from hotclip_server.config import ServerConfig
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.states import JobState
from hotclip_server.storage.database import Database
from hotclip_server.trackers.follower import Followers, Make
from hotclip_server.trackers.known import tracker_maker
from hotclip_server.trackers.protocol import Outcome, TrackedRun

GRACE_S = 10.0


@dataclass
class Notebook:
    """A tracker that notes what it is told, and raises or waits where it is asked to."""

    run: TrackedRun
    raises_on: str = ""
    leave: threading.Event | None = None
    told: list[tuple[str, float, int]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    outcome: str = ""
    rewinds: bool = False

    def rewind(self, step: int) -> bool:
        if self.rewinds:
            self.told = [told for told in self.told if told[2] <= step]
        return self.rewinds

    def metrics(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        if self.leave is not None:
            self.leave.wait()
        if self.raises_on == "metrics":
            raise RuntimeError("no network")
        self.told += [(name, value, step) for name, value in values.items()]
        self.times.append(time)

    def close(self, outcome: Outcome) -> None:
        if self.raises_on == "close":
            raise KeyError("closing")
        self.outcome = outcome


def measures(job: JobContext) -> JobResult:
    """All stages, and more events than are read at a time."""
    job.running()
    job.metric("BEFORE", {"monitor": 0.1}, step=0)
    for step in range(300):
        job.log(f"line {step}")
    job.metric("STEP", {"loss": 2.0, "grad_norm": 1.0}, step=1, total_steps=1)
    job.metric("EPOCH", {"monitor": 0.2}, step=1)
    job.metric("ALPHA", {"alpha": 0.25, "monitor": 0.15}, step=1)
    job.metric("AFTER", {"monitor": 0.2}, step=1)
    return JobResult()


TOLD = [
    ("epoch/monitor", 0.1, 0),
    ("train/loss", 2.0, 1),
    ("train/grad_norm", 1.0, 1),
    ("epoch/monitor", 0.2, 1),
    ("alpha/monitor", 0.15, 25),
    ("best/monitor", 0.2, 1),
]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(tmp_path)
    yield database
    database.close()


@asynccontextmanager
async def running(
    database: Database,
    work: Callable[[JobContext], JobResult],
    make: Make,
    grace_s: float = GRACE_S,
) -> AsyncIterator[JobRunner]:
    """A runner whose jobs are followed; both are stopped at the end."""
    followers = Followers(database, make, pause_s=0.01)
    runner = JobRunner(database, [Handler(work)], began=followers.began)
    await runner.start()
    yield runner
    await runner.stop()
    await asyncio.to_thread(followers.stop, grace_s)


async def test_each_is_told_all_of_the_log_in_order(database: Database) -> None:
    made: dict[str, Notebook] = {}

    def make(name: str, run: TrackedRun) -> Notebook:
        return made.setdefault(name, Notebook(run))

    async with running(database, measures, make) as runner:
        job = await runner.submit(
            new_job("first", trackers=["tensorboard", "wandb"], config={"epochs": 3}, note=None)
        )
        await ended(runner, job.id)
        other = await runner.submit(new_job("second"))
        await ended(runner, other.id)
    assert set(made) == {"tensorboard", "wandb"}
    for notebook in made.values():
        assert notebook.told == TOLD
        assert notebook.outcome == "SUCCEEDED"
        assert notebook.times == sorted(notebook.times)
        assert abs(notebook.times[0] - time.time()) < 60
        assert notebook.run.folder_name == f"first-{job.id}"
        assert notebook.run.settings["config.epochs"] == "3"
        assert notebook.run.settings["note"] == ""


@pytest.mark.parametrize("raises_on", ["make", "metrics", "close"])
async def test_a_failure_is_one_warning_and_costs_that_tracker_alone(
    database: Database, raises_on: str
) -> None:
    made: dict[str, Notebook] = {}
    gate = threading.Event()

    def make(name: str, run: TrackedRun) -> Notebook:
        bad = name == "wandb"
        if bad and raises_on == "make":
            raise ImportError("no module named\nwandb")
        return made.setdefault(name, Notebook(run, raises_on=raises_on if bad else ""))

    def work(job: JobContext) -> JobResult:
        result = measures(job)
        if raises_on != "close":
            assert gate.wait(GRACE_S)  # so that the job is there to be told
        return result

    async with running(database, work, make) as runner:
        job = await runner.submit(new_job(trackers=["wandb", "mlflow"]))
        if raises_on != "close":
            async for event in runner.watch(job.id):
                if event.log.level == job_pb2.LogEvent.LEVEL_WARNING:
                    break
        gate.set()
        record = await ended(runner, job.id)
        assert record.state is JobState.SUCCEEDED
        events = await all_events(runner, job.id)
    assert made["mlflow"].told == TOLD
    assert made["mlflow"].outcome == "SUCCEEDED"
    told = [e.log.message for e in events if e.log.level == job_pb2.LogEvent.LEVEL_WARNING]
    # After its end a job is told nothing more.
    assert len(told) == (0 if raises_on == "close" else 1)
    assert all(line.startswith("tracker wandb ended, the job goes on: no ") for line in told)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[-1].state.state == job_pb2.JOB_STATE_SUCCEEDED


async def test_one_that_hangs_holds_up_neither_the_job_nor_the_end(database: Database) -> None:
    leave = threading.Event()

    def make(name: str, run: TrackedRun) -> Notebook:
        return Notebook(run, leave=leave)

    async with running(database, measures, make, grace_s=0.2) as runner:
        job = await runner.submit(new_job(trackers=["wandb"]))
        assert (await ended(runner, job.id)).state is JobState.SUCCEEDED
    leave.set()
    for thread in threading.enumerate():
        if thread.name == "hotclip-wandb":
            thread.join(GRACE_S)


async def test_a_resumed_job_is_told_from_there_on(database: Database) -> None:
    made: list[Notebook] = []
    attempts: list[int] = []

    def make(name: str, run: TrackedRun) -> Notebook:
        made.append(Notebook(run))
        return made[-1]

    def work(job: JobContext) -> JobResult:
        attempts.append(1)
        job.running()
        job.metric("EPOCH", {"monitor": len(attempts) / 10}, step=len(attempts))
        if len(attempts) == 1:
            raise ValueError("a fault")
        return JobResult()

    async with running(database, work, make) as runner:
        job = await runner.submit(new_job(trackers=["mlflow"]))
        await ended(runner, job.id)
        await runner.resume(job.id)
        await ended(runner, job.id)
    assert [notebook.told for notebook in made] == [
        [("epoch/monitor", 0.1, 1)],
        [("epoch/monitor", 0.2, 2)],
    ]
    assert [notebook.outcome for notebook in made] == ["FAILED", "SUCCEEDED"]


async def test_a_server_that_stops_ends_the_run(database: Database) -> None:
    made: list[Notebook] = []
    entered = threading.Event()

    def make(name: str, run: TrackedRun) -> Notebook:
        made.append(Notebook(run))
        return made[-1]

    def work(job: JobContext) -> JobResult:
        job.running()
        job.metric("EPOCH", {"monitor": 0.1}, step=1)
        entered.set()
        while True:
            job.check_cancelled()
            time.sleep(0.005)

    async with running(database, work, make) as runner:
        await runner.submit(new_job(trackers=["mlflow"]))
        assert await asyncio.to_thread(entered.wait, GRACE_S)
    assert (made[0].told, made[0].outcome) == ([("epoch/monitor", 0.1, 1)], "INTERRUPTED")


def goes_on(attempts: list[int]) -> Callable[[JobContext], JobResult]:
    """Two attempts: the second begins at a state before what the first one told."""

    def work(job: JobContext) -> JobResult:
        attempts.append(1)
        job.running()
        if len(attempts) == 1:
            job.metric("BEFORE", {"monitor": 0.1}, step=0)
            steps, alphas = range(1, 5), (0.0,)
        else:
            job.resumed(2)
            job.metric("EPOCH", {"monitor": 0.2}, step=2)  # the state was from before its end
            steps, alphas = range(3, 7), (0.0, 0.5)
        for step in steps:
            job.metric("STEP", {"loss": float(step)}, step=step, total_steps=6)
            if step in (2, 4):
                job.metric("EPOCH", {"monitor": 0.2}, step=step)
        for alpha in alphas:
            job.metric("ALPHA", {"alpha": alpha, "monitor": 0.3}, step=6)
        if len(attempts) == 1:
            raise ValueError("a fault")
        return JobResult()

    return work


WHOLE = {
    "train/loss": [(step, float(step)) for step in range(1, 7)],
    "epoch/monitor": [(0, 0.1), (2, 0.2), (4, 0.2)],
    "alpha/monitor": [(0, 0.3), (50, 0.3)],
}


@pytest.mark.parametrize("rewinds", [False, True])
async def test_what_comes_again_is_told_once_where_it_can_be_and_never_left_out(
    database: Database, monkeypatch: pytest.MonkeyPatch, rewinds: bool
) -> None:
    monkeypatch.setattr("hotclip_server.jobs.context.STEP_EVENT_INTERVAL_S", 0.0)
    notebook: list[Notebook] = []

    def make(name: str, run: TrackedRun) -> Notebook:
        if not notebook:
            notebook.append(Notebook(run, rewinds=rewinds))
        return notebook[0]

    await twice(database, make)
    (found,) = notebook
    for name, values in WHOLE.items():
        told = [(step, value) for told, value, step in found.told if told == name]
        assert sorted(set(told)) == values
        assert (told == values) is rewinds


async def test_tensorboard_shows_what_comes_again_once(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr("hotclip_server.jobs.context.STEP_EVENT_INTERVAL_S", 0.0)
    await twice(database, tracker_maker(ServerConfig(data_dir=tmp_path)))
    (folder,) = (tmp_path / "trackers" / "tensorboard").iterdir()
    assert len(list(folder.iterdir())) == 2
    found = EventAccumulator(str(folder))
    found.Reload()
    for name, values in WHOLE.items():
        told = [(event.step, event.value) for event in found.Scalars(name)]
        assert told == [(step, pytest.approx(value)) for step, value in values]
    assert found.Tensors("settings/text_summary")


async def twice(database: Database, make: Make) -> None:
    """A job that fails and goes on."""
    async with running(database, goes_on([]), make) as runner:
        job = await runner.submit(new_job(trackers=["tensorboard"]))
        await ended(runner, job.id)
        # Files are named by the second.
        await asyncio.sleep(1.1)
        await runner.resume(job.id)
        assert (await ended(runner, job.id)).state is JobState.SUCCEEDED
