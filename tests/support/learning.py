"""Uploads and jobs over a real channel, as a client would do them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc
from support.drawings import key_of

from hotclip_proto.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    encode_pb2,
    encode_pb2_grpc,
    finetune_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    model_pb2_grpc,
    types_pb2,
)

Upload = dataset_pb2.UploadDatasetRequest
ENDED = (
    job_pb2.JOB_STATE_SUCCEEDED,
    job_pb2.JOB_STATE_FAILED,
    job_pb2.JOB_STATE_CANCELLED,
    job_pb2.JOB_STATE_INTERRUPTED,
)


class Stubs:
    """Every service of one server."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.datasets = dataset_pb2_grpc.DatasetServiceStub(channel)
        self.jobs = job_pb2_grpc.JobServiceStub(channel)
        self.tuning = finetune_pb2_grpc.FineTuneServiceStub(channel)
        self.models = model_pb2_grpc.ModelServiceStub(channel)
        self.encoding = encode_pb2_grpc.EncodeServiceStub(channel)

    def upload(self, name: str, pairs: Sequence[tuple[bytes, str]]) -> dataset_pb2.Dataset:
        *_, last = self.datasets.UploadDataset(upload_messages(name, pairs), timeout=60)
        assert last.HasField("dataset")
        return last.dataset

    def wait(self, job: str) -> job_pb2.Job:
        """The job once it has ended."""
        for _ in self.jobs.WatchJob(job_pb2.WatchJobRequest(job=job), timeout=250):
            pass
        ended: job_pb2.Job = self.jobs.GetJob(job_pb2.GetJobRequest(job=job))
        assert ended.state in ENDED
        return ended

    def live(self) -> str:
        """The version that answers."""
        items = [types_pb2.EncodeItem(text="which version is it")]
        return str(self.encoding.Encode(encode_pb2.EncodeRequest(items=items)).version)


def upload_messages(name: str, pairs: Sequence[tuple[bytes, str]]) -> Iterator[Upload]:
    """An upload: each image once, all pairs in one message."""
    yield Upload(open=dataset_pb2.DatasetOpen(name=name, description="drawn"))
    images = dict.fromkeys(image for image, _ in pairs)
    for image in images:
        yield Upload(image=dataset_pb2.DatasetImage(key=key_of(image), data=image))
    rows = [dataset_pb2.DatasetPair(image_key=key_of(i), text=text) for i, text in pairs]
    yield Upload(pairs=dataset_pb2.DatasetPairs(pairs=rows))
    yield Upload(close=dataset_pb2.DatasetClose(pairs=len(rows), images=len(images)))
