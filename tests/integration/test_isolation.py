"""A fine-tune on a thread of the server and in a process of its own: the same in every respect."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import grpc
import psutil
import pytest
from support.drawings import drawn_pairs
from support.learning import Stubs
from support.server import ServerProcess, start_server

from hotclip_proto.v1 import finetune_pb2, job_pb2
from hotclip_server.training.child_work import TRAINER_DEFAULTS

Request = finetune_pb2.FineTuneRequest
IN_PROCESS, PROCESS = finetune_pb2.ISOLATION_IN_PROCESS, finetune_pb2.ISOLATION_PROCESS
BOTH = pytest.mark.parametrize("isolation", [IN_PROCESS, PROCESS], ids=["thread", "process"])
STEPS = 24


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("isolated") / "data"
    with start_server(folder, "--device", "cpu", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def stubs(server: ServerProcess) -> Iterator[Stubs]:
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs(channel)
        stubs.upload("shapes", drawn_pairs())
        stubs.upload("one-family", [(image, "the same") for image, _ in drawn_pairs()[:3]])
        yield stubs


def tune(isolation: int, **changes: object) -> Request:
    values: dict[str, object] = {
        "train_dataset": "shapes",
        "val_split": 0.25,
        "max_steps": STEPS,
        "batch_size": 8,
        "chunk_size": 4,
        "method": finetune_pb2.METHOD_FULL,
        "learning_rate": 1e-3,
        "activation": finetune_pb2.ACTIVATION_IF_BETTER,
        "isolation": isolation,
    }
    return Request(**{**values, **changes})


@pytest.fixture(scope="module")
def base(stubs: Stubs) -> str:
    """What the server began with."""
    return stubs.live()


@pytest.fixture(scope="module")
def expected(stubs: Stubs, base: str) -> str:
    """The version that a run makes which nothing disturbs."""
    job = stubs.wait(stubs.tuning.FineTune(tune(IN_PROCESS, base_version=base)).id)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    return str(job.result_version)


def trainers(server: ServerProcess) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in children if "hotclip_server.training.child" in child.cmdline()]


def step_seen(stubs: Stubs, job: str, step: int) -> None:
    """Returns when the job has told of a step at least so far."""
    for event in stubs.jobs.WatchJob(job_pb2.WatchJobRequest(job=job), timeout=200):
        if event.metric.stage == job_pb2.MetricEvent.STAGE_STEP and event.metric.step >= step:
            return


@BOTH
def test_it_ends_with_the_same_version_and_is_released(
    stubs: Stubs, base: str, expected: str, isolation: int, server: ServerProcess
) -> None:
    job = stubs.wait(stubs.tuning.FineTune(tune(isolation, base_version=base)).id)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.result_version == expected
    metrics = {metric.name for metric in job.metrics}
    assert {"monitor", "loss", "chunk_size", "yielded_share"} <= metrics
    assert trainers(server) == []
    assert kept(server, 0) == []


def test_its_process_shares_the_servers_session_and_not_its_group(
    stubs: Stubs, base: str, server: ServerProcess
) -> None:
    """Linux may divide processors among sessions, in which the idle class says nothing."""
    job = stubs.tuning.FineTune(tune(PROCESS, base_version=base, max_steps=1_000_000)).id
    step_seen(stubs, job, 1)
    (trainer,) = trainers(server)
    assert os.getsid(trainer.pid) == os.getsid(server.process.pid)
    assert os.getpgid(trainer.pid) == trainer.pid
    assert trainer.environ().items() >= TRAINER_DEFAULTS.items()
    stubs.jobs.CancelJob(job_pb2.CancelJobRequest(job=job))
    assert stubs.wait(job).state == job_pb2.JOB_STATE_CANCELLED
    stubs.jobs.DeleteJob(job_pb2.DeleteJobRequest(job=job))


def kept(server: ServerProcess, count: int) -> list[str]:
    """Jobs that have states on the disk; those of a job that ended are removed just after."""
    ends = time.monotonic() + 60
    while True:
        names = [path.name for path in (server.data_dir / "checkpoints").iterdir()]
        if len(names) == count or time.monotonic() > ends:
            return names
        time.sleep(0.02)


@BOTH
def test_cancelled_within_a_chunk_and_resumed_to_the_same_version(
    stubs: Stubs, base: str, expected: str, isolation: int, server: ServerProcess
) -> None:
    job = stubs.tuning.FineTune(tune(isolation, base_version=base)).id
    step_seen(stubs, job, 5)
    stubs.jobs.CancelJob(job_pb2.CancelJobRequest(job=job))
    assert stubs.wait(job).state == job_pb2.JOB_STATE_CANCELLED
    assert trainers(server) == []
    assert kept(server, 1) == [job]
    stubs.jobs.ResumeJob(job_pb2.ResumeJobRequest(job=job))
    ended = stubs.wait(job)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended.error
    assert ended.result_version == expected
    events = list(stubs.jobs.WatchJob(job_pb2.WatchJobRequest(job=job)))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert not any("was killed" in event.log.message for event in events), "it did not stop itself"
    (resumed,) = [event.resumed for event in events if event.HasField("resumed")]
    assert 5 <= resumed.from_step < STEPS
    assert resumed.attempt == 2


@BOTH
def test_what_fails_tells_the_same(stubs: Stubs, isolation: int) -> None:
    job = stubs.tuning.FineTune(tune(isolation, train_dataset="one-family"))
    ended = stubs.wait(job.id)
    assert ended.state == job_pb2.JOB_STATE_FAILED
    assert (ended.error.code, ended.error.reason) == (3, "PAIRS_INVALID")
    assert "independent groups" in ended.error.message
    stubs.jobs.DeleteJob(job_pb2.DeleteJobRequest(job=job.id))


def test_a_process_that_dies_is_followed_by_another(
    stubs: Stubs, base: str, expected: str, server: ServerProcess
) -> None:
    job = stubs.tuning.FineTune(tune(PROCESS, base_version=base)).id
    step_seen(stubs, job, 3)
    (trainer,) = trainers(server)
    trainer.send_signal(signal.SIGKILL)
    ended = stubs.wait(job)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended.error
    assert ended.result_version == expected
    events = list(stubs.jobs.WatchJob(job_pb2.WatchJobRequest(job=job)))
    assert any("died (SIGKILL)" in event.log.message for event in events)
    (resumed,) = [event.resumed for event in events if event.HasField("resumed")]
    assert resumed.attempt == 2
    stubs.live()  # it serves
