"""Datasets, fine-tuning and following jobs through real gRPC against the small server."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotclip import AsyncClient, Client, JobState, LogLine
from hotclip.errors import DeadlineExceeded, InvalidArgument, JobFailed
from hotclip_proto.v1 import finetune_pb2, job_pb2

from .conftest import FakeEncode

PAIRS = [(f"text {i}", b"%d" % i) for i in range(200)]


def test_events_survive_broken_connections(fake: FakeEncode) -> None:
    with Client(fake.address) as client:
        run = client.get_job("run")
        assert [e.seq for e in run.events()] == list(range(1, 21))
        assert fake.jobs.watches == [0, 3, 9]
        assert [e.seq for e in run.events(18)] == [19, 20]
        assert [line.message for line in run.logs()] == [f"line {i}" for i in range(1, 20)]
        assert all(isinstance(line, LogLine) for line in run.stream_logs())
        assert run.wait(5).state is JobState.SUCCEEDED


async def test_events_survive_with_asyncio(fake: FakeEncode) -> None:
    async with AsyncClient(fake.address) as client:
        run = await client.get_job("run")
        assert [e.seq async for e in run.events()] == list(range(1, 21))
        assert len(await run.logs()) == 19
        assert (await run.wait(5)).state is JobState.SUCCEEDED


def test_a_job_that_ends_badly_raises(fake: FakeEncode) -> None:
    fake.jobs.final = job_pb2.JOB_STATE_CANCELLED
    with Client(fake.address) as client, pytest.raises(JobFailed) as caught:
        client.get_job("run").wait(5)
    assert caught.value.job.state is JobState.CANCELLED


async def test_waiting_ends_in_time_and_leaves_the_job_alone(fake: FakeEncode) -> None:
    fake.jobs.hang = True
    with Client(fake.address) as client, pytest.raises(DeadlineExceeded):
        client.get_job("run").wait(0.3)
    async with AsyncClient(fake.address) as twin:
        run = await twin.get_job("run")
        with pytest.raises(DeadlineExceeded):
            await run.wait(0.3)


def test_fine_tuning_uploads_only_what_is_new(fake: FakeEncode) -> None:
    with Client(fake.address) as client:
        client.finetune("named", epochs=3, loss="CLIPLoss", activation="always")
        client.finetune(PAIRS, PAIRS[:1])
        client.finetune(PAIRS, lock_image=True)
        client.finetune([("a", b"known")])
    first, second, third, fourth = fake.jobs.started
    assert first.train_dataset == "named"
    assert first.epochs == 3
    assert not first.HasField("batch_size")
    assert first.loss == finetune_pb2.LOSS_INFO_NCE
    assert first.activation == finetune_pb2.ACTIVATION_ALWAYS
    assert second.train_dataset == third.train_dataset != second.eval_dataset
    assert third.lock_image
    assert fourth.train_dataset == "ds-known"
    assert len({r.request_id for r in fake.jobs.started}) == 4
    assert len(fake.datasets.uploads) == 3


@pytest.mark.parametrize("place", [0, 120])
async def test_a_refused_upload_says_why(fake: FakeEncode, place: int) -> None:
    pairs = [*PAIRS[:place], ("bad", b"x" * 50_000), *PAIRS]
    with Client(fake.address) as client, pytest.raises(InvalidArgument, match="DATASET_INVALID"):
        client.upload_dataset("n", pairs)
    async with AsyncClient(fake.address) as twin:
        with pytest.raises(InvalidArgument, match="DATASET_INVALID"):
            await twin.upload_dataset("n", pairs)


async def test_an_image_that_goes_away_is_named(fake: FakeEncode, tmp_path: Path) -> None:
    pairs = [*PAIRS[:3], ("gone", tmp_path / "none.png")]
    with Client(fake.address) as client, pytest.raises(InvalidArgument, match=r"pairs\[3\]"):
        client.upload_dataset("n", pairs)
    async with AsyncClient(fake.address) as twin:
        with pytest.raises(InvalidArgument, match=r"pairs\[3\]"):
            await twin.upload_dataset("n", pairs)
