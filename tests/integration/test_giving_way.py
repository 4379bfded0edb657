"""A fine-tune in a process of its own, for which this one is the server: it pauses while the bit
that both share is up."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from support.drawings import drawn_pairs
from support.jobs import Handler, all_events, ended, new_job
from support.learning import Stubs
from support.server import spawn_server, start_server

from hotclip_proto.v1 import finetune_pb2, job_pb2
from hotclip_server.encoding.engines.parts import PartThreads
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.specs import ActivationRule, FineTuneSpec
from hotclip_server.jobs.states import JobState
from hotclip_server.models.store import VersionStore
from hotclip_server.shared_flag import SharedFlag
from hotclip_server.storage.database import Database
from hotclip_server.training.child import DatasetFolders
from hotclip_server.training.child_work import ChildWork, child_work
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.finetune_work import Roots, Workplace, local_work

STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a server left behind."""

    folder: Path
    base: str
    dataset: str

    def place(self, states: Path, waiting: SharedFlag) -> Workplace:
        roots = Roots(versions=self.folder / "versions", datasets=self.folder / "datasets")
        return Workplace(
            versions=VersionStore(roots.versions),
            datasets=DatasetFolders(roots.datasets),  # type: ignore[arg-type]  # only loads
            folders=states,
            threads=1,
            roots=roots,
            waiting=waiting,
        )

    def spec(self, steps: int = STEPS) -> FineTuneSpec:
        return FineTuneSpec(
            model="default",
            base_version=self.base,
            train_dataset=self.dataset,
            eval_dataset="",
            index_dataset="",
            val_split=0.0,
            activation=ActivationRule.NEVER,
            config=TrainConfig(max_steps=steps, batch_size=8, method="full", learning_rate=1e-3),
        )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    folder = tmp_path_factory.mktemp("left") / "data"
    with (
        start_server(folder, "--device", "cpu", "--threads", "1") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stubs = Stubs(channel)
        dataset = stubs.upload("shapes", drawn_pairs())
        return Stored(folder=folder, base=stubs.live(), dataset=dataset.id)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    yield database
    database.close()


def in_a_process(
    place: Workplace, spec: FineTuneSpec, works: list[ChildWork]
) -> Callable[[JobContext], JobResult]:
    def work(job: JobContext) -> JobResult:
        with child_work(place, job, spec) as own:
            assert isinstance(own, ChildWork)
            works.append(own)
            return JobResult(result_version=own.make().version)

    return work


async def step_of(runner: JobRunner, job: str) -> None:
    """Returns when a step was told of."""
    async for event in runner.watch(job):
        if event.metric.stage == job_pb2.MetricEvent.STAGE_STEP:
            return


async def test_it_pauses_while_somebody_waits_and_keeps_its_floor(
    stored: Stored, database: Database, tmp_path: Path
) -> None:
    flag = SharedFlag()
    flag.set(True)
    place = stored.place(tmp_path / "states", flag)

    def here(job: JobContext) -> JobResult:
        with local_work(place, job, stored.spec()) as own:
            return JobResult(result_version=own.make().version)

    versions, shares = [], []
    for work in (here, in_a_process(place, stored.spec(), [])):
        runner = JobRunner(database, [Handler(work)])
        await runner.start()
        job = await runner.submit(new_job())
        async with asyncio.timeout(200):
            await all_events(runner, job.id)
        record = await runner.get(job.id)
        assert record.state is JobState.SUCCEEDED, record.error
        versions.append(record.result_version)
        shares.append(record.metrics["yielded_share"])
        await runner.stop()
    assert versions[0] == versions[1]
    # Here the job asks the batcher, of which there is none.
    assert shares[0] == 0
    assert shares[1] > 0


async def test_cancelled_in_a_pause(stored: Stored, database: Database, tmp_path: Path) -> None:
    flag = SharedFlag()
    place = replace(stored.place(tmp_path / "states", flag), every_s=0.0)
    works: list[ChildWork] = []
    runner = JobRunner(database, [Handler(in_a_process(place, stored.spec(10_000), works))])
    await runner.start()
    job = await runner.submit(new_job())
    await step_of(runner, job.id)
    flag.set(True)
    (work,) = works
    process = psutil.Process(work.pid)
    await runner.cancel(job.id)
    assert (await ended(runner, job.id)).state is JobState.CANCELLED
    assert not process.is_running()
    events = await all_events(runner, job.id)
    assert not any("died" in event.log.message for event in events)
    assert any(event.HasField("checkpoint") for event in events)
    await runner.stop()


async def test_what_a_service_manager_tells_all_processes_is_for_the_server(
    stored: Stored, database: Database, tmp_path: Path
) -> None:
    place = stored.place(tmp_path / "states", SharedFlag())
    works: list[ChildWork] = []
    runner = JobRunner(database, [Handler(in_a_process(place, stored.spec(10_000), works))])
    await runner.start()
    job = await runner.submit(new_job())
    await step_of(runner, job.id)
    (work,) = works
    process = psutil.Process(work.pid)
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    told = (await runner.get(job.id)).last_seq
    async for event in runner.watch(job.id, told):
        if event.metric.stage == job_pb2.MetricEvent.STAGE_STEP:
            break
    assert process.is_running()
    await runner.cancel(job.id)
    async with asyncio.timeout(10):
        events = await all_events(runner, job.id)
    assert (await runner.get(job.id)).state is JobState.CANCELLED
    assert not any("died" in event.log.message for event in events)
    assert events[-2].HasField("checkpoint")
    await runner.stop()


async def test_in_parts_it_makes_the_same_on_a_thread_as_in_a_process(
    stored: Stored, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = replace(stored.place(tmp_path / "states", SharedFlag()), threads=2)
    plan = stored.spec()
    spec = replace(plan, config=replace(plan.config, batch_size=16))
    parts: list[int] = []
    run = PartThreads.run

    def counted(threads: PartThreads, works: Sequence[Callable[[], Any]]) -> list[Any]:
        parts.append(len(works))
        return run(threads, works)

    monkeypatch.setattr(PartThreads, "run", counted)

    def here(job: JobContext) -> JobResult:
        with local_work(place, job, spec) as own:
            return JobResult(result_version=own.make().version)

    versions = []
    for work in (here, in_a_process(place, spec, [])):
        runner = JobRunner(database, [Handler(work)])
        await runner.start()
        job = await runner.submit(new_job())
        async with asyncio.timeout(200):
            await all_events(runner, job.id)
        record = await runner.get(job.id)
        assert record.state is JobState.SUCCEEDED, record.error
        versions.append(record.result_version)
        await runner.stop()
    assert parts == [2] * 2 * STEPS
    assert versions[0] == versions[1]


def test_it_ends_with_a_server_that_was_killed_while_requests_waited(tmp_path: Path) -> None:
    server = spawn_server(tmp_path / "data", "--device", "cpu", "--threads", "1")
    server.wait_ready()
    asking = True

    def ask() -> None:
        with grpc.insecure_channel(server.address) as channel:
            while asking:
                try:
                    Stubs(channel).live()
                except grpc.RpcError:
                    time.sleep(0.01)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    try:
        with grpc.insecure_channel(server.address) as channel:
            stubs = Stubs(channel)
            stubs.upload("shapes", drawn_pairs())
            request = finetune_pb2.FineTuneRequest(
                train_dataset="shapes",
                max_steps=100_000,
                batch_size=8,
                isolation=finetune_pb2.ISOLATION_PROCESS,
            )
            job = stubs.tuning.FineTune(request).id
            for caller in callers:
                caller.start()
            for event in stubs.jobs.WatchJob(job_pb2.WatchJobRequest(job=job), timeout=200):
                if event.metric.stage == job_pb2.MetricEvent.STAGE_STEP:
                    break
        children = psutil.Process(server.process.pid).children(recursive=True)
        trainers = [one for one in children if "hotclip_server.training.child" in one.cmdline()]
        assert len(trainers) == 1
        server.kill()
        gone, _ = psutil.wait_procs(trainers, timeout=60)
        assert gone == trainers
    finally:
        asking = False
        server.kill()
        for caller in callers:
            if caller.ident:
                caller.join()
