"""Watching a job across a stop of the server: nothing is lost, nothing comes twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from support.drawings import drawn_pairs
from support.learning import Stubs
from support.server import ServerProcess

from hotclip_proto.v1 import finetune_pb2, job_pb2

TUNE = finetune_pb2.FineTuneRequest(
    name="long",
    train_dataset="shapes",
    max_steps=1_000_000,
    batch_size=8,
    activation=finetune_pb2.ACTIVATION_NEVER,
)


def test_a_watch_goes_on_after_a_restart(
    tmp_path: Path, make_server: Callable[..., ServerProcess]
) -> None:
    data = tmp_path / "data"
    first = make_server("--resume-jobs", "manual", data_dir=data)
    seen: list[job_pb2.JobEvent] = []
    with grpc.insecure_channel(first.address) as channel:
        stubs = Stubs(channel)
        stubs.upload("shapes", drawn_pairs())
        stubs.tuning.FineTune(TUNE)

        def follow() -> None:
            told = False
            for event in stubs.jobs.WatchJob(job_pb2.WatchJobRequest(job="long")):
                seen.append(event)
                if event.metric.stage == job_pb2.MetricEvent.STAGE_STEP and not told:
                    first.process.terminate()  # once: a second time would end it at once
                    told = True

        with pytest.raises(grpc.RpcError) as ended:
            follow()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert first.wait() == 0

    second = make_server("--resume-jobs", "manual", data_dir=data)
    with grpc.insecure_channel(second.address) as channel:
        jobs = Stubs(channel).jobs
        job = job_pb2.GetJobRequest(job="long")
        assert jobs.GetJob(job).state == job_pb2.JOB_STATE_INTERRUPTED
        seen += jobs.WatchJob(job_pb2.WatchJobRequest(job="long", after_seq=seen[-1].seq))
        assert seen[-1].state.state == job_pb2.JOB_STATE_INTERRUPTED
        resumed = jobs.ResumeJob(job_pb2.ResumeJobRequest(job="long"))
        assert resumed.state == job_pb2.JOB_STATE_QUEUED
        for event in jobs.WatchJob(job_pb2.WatchJobRequest(job="long", after_seq=seen[-1].seq)):
            seen.append(event)
            if event.metric.stage == job_pb2.MetricEvent.STAGE_STEP:
                jobs.CancelJob(job_pb2.CancelJobRequest(job="long"))
        assert jobs.GetJob(job).state == job_pb2.JOB_STATE_CANCELLED
        jobs.ResumeJob(job_pb2.ResumeJobRequest(job="long"))  # what was cancelled may go on
        with pytest.raises(grpc.RpcError) as refused:  # what is under way need not
            jobs.ResumeJob(job_pb2.ResumeJobRequest(job="long"))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        jobs.CancelJob(job_pb2.CancelJobRequest(job="long"))
        with pytest.raises(grpc.RpcError) as beyond:
            jobs.WatchJob(job_pb2.WatchJobRequest(job="long", after_seq=10**6)).next()
        assert beyond.value.code() is grpc.StatusCode.OUT_OF_RANGE
        with pytest.raises(grpc.RpcError) as unknown_kind:
            jobs.ListJobs(job_pb2.ListJobsRequest(kind=99))
        assert unknown_kind.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
