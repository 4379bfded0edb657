"""A small real gRPC server for the client's own tests.

It encodes by arithmetic, counts what it was asked, and misbehaves on demand. The real
server is met in tests/integration.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from hotclip_proto.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    encode_pb2,
    encode_pb2_grpc,
    finetune_pb2,
    finetune_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    types_pb2,
)

DIM = 8


def vector(content: bytes, version: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A unit vector (DIM,) float32 that depends on content and version."""
    seed = int.from_bytes(hashlib.sha256(version.encode() + content).digest()[:8], "big")
    row = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return row / np.linalg.norm(row)


def rich(
    code: int,
    reason: str,
    message: str,
    *,
    field: str = "",
    retry_s: float | None = None,
    dataset: str = "",
) -> Any:
    """A status with details, as the server sends it."""
    status = status_pb2.Status(code=code, message=message)
    info = error_details_pb2.ErrorInfo(
        reason=reason, domain="hotclip", metadata={"request_id": "r-1", "dataset": dataset}
    )
    status.details.add().Pack(info)
    if field:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=field, description=message)
        status.details.add().Pack(bad)
    if retry_s is not None:
        delay = Duration()
        delay.FromMilliseconds(round(retry_s * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return rpc_status.to_status(status)


class FakeEncode(encode_pb2_grpc.EncodeServiceServicer, server_pb2_grpc.ServerServiceServicer):
    """Encode, EncodeStream, Rank and GetServerInfo."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.live = "v1"
        self.resident = {"v1"}
        self.requests: list[encode_pb2.EncodeRequest] = []
        self.max_items = 4
        self.max_bytes = 1 << 20
        self.max_in_flight = 3
        self.fail_next: list[Any] = []  # statuses to abort with, one a call
        self.swap_after: int | None = None  # swap to v2 and drop v1 after so many requests
        self.break_stream_after: int | None = None  # answers before the stream breaks, once
        self.most_unanswered = 0
        self.streams = 0
        self.entered = threading.Event()
        self.cancelled = threading.Event()
        self.delay = 0.0
        self.address = ""
        self.datasets = FakeDatasets()
        self.jobs = FakeJobs()

    def GetServerInfo(self, request: Any, context: Any) -> server_pb2.GetServerInfoResponse:
        limits = server_pb2.Limits(
            max_items_per_request=self.max_items,
            max_message_bytes=self.max_bytes,
            max_stream_in_flight=self.max_in_flight,
        )
        return server_pb2.GetServerInfoResponse(server_version="0", limits=limits)

    def Encode(self, request: Any, context: Any) -> encode_pb2.EncodeResponse:
        self.entered.set()
        if self.delay and not self.cancelled.is_set():
            context.add_callback(self.cancelled.set)
            self.cancelled.wait(self.delay)
        with self.lock:
            if self.fail_next:
                context.abort_with_status(self.fail_next.pop(0))
            self.requests.append(request)
            version = request.version or self.live
            if version not in self.resident:
                context.abort_with_status(rich(code_pb2.NOT_FOUND, "VERSION_NOT_FOUND", version))
            if self.swap_after is not None and len(self.requests) >= self.swap_after:
                self.live, self.resident, self.swap_after = "v2", {"v2"}, None
        return self.encode(request, version)

    def encode(self, request: encode_pb2.EncodeRequest, version: str) -> encode_pb2.EncodeResponse:
        rows, errors = [], []
        for index, item in enumerate(request.items):
            content = item.text.encode() or item.image or item.tensor.data
            if item.text == "bad":
                rows.append(np.zeros(DIM, np.float32))
                errors.append(
                    types_pb2.ItemError(index=index, code=3, reason="TEXT_BAD", message="bad")
                )
            else:
                rows.append(vector(content, version))
        half = request.dtype == types_pb2.D_TYPE_FLOAT16
        block = types_pb2.VectorBlock(
            data=np.stack(rows).astype("<f2" if half else "<f4").tobytes(),
            dtype=types_pb2.D_TYPE_FLOAT16 if half else types_pb2.D_TYPE_FLOAT32,
            dim=DIM,
            count=len(rows),
        )
        return encode_pb2.EncodeResponse(
            vectors=block,
            errors=errors,
            model="default",
            version=version,
            space_id=f"space-{version}",
        )

    def EncodeStream(self, requests: Any, context: Any) -> Iterator[Any]:
        self.streams += 1
        context.add_callback(self.cancelled.set)
        limits = encode_pb2.StreamLimits(max_in_flight=self.max_in_flight)
        yield encode_pb2.EncodeStreamResponse(limits=limits)
        for answered, request in enumerate(requests):
            if self.break_stream_after is not None and answered >= self.break_stream_after:
                self.break_stream_after = None
                context.abort_with_status(rich(code_pb2.UNAVAILABLE, "SHUTTING_DOWN", "bye"))
            self.requests.append(request.request)
            answer = encode_pb2.StreamAnswer(
                id=request.id, response=self.encode(request.request, self.live)
            )
            yield encode_pb2.EncodeStreamResponse(answer=answer)

    def Rank(self, request: Any, context: Any) -> encode_pb2.RankResponse:
        scores = [
            encode_pb2.RankScore(index=i, cosine=1.0 / (i + 1), probability=0.5)
            for i in range(len(request.candidates))
        ]
        return encode_pb2.RankResponse(scores=scores, version=self.live, space_id="s")


class FakeDatasets(dataset_pb2_grpc.DatasetServiceServicer):
    """Keeps nothing; refuses a bad text at once and one name's content as known."""

    def __init__(self) -> None:
        self.uploads: list[list[dataset_pb2.UploadDatasetRequest]] = []

    def UploadDataset(
        self, requests: Any, context: Any
    ) -> Iterator[dataset_pb2.UploadDatasetResponse]:
        got: list[dataset_pb2.UploadDatasetRequest] = []
        self.uploads.append(got)
        for request in requests:
            got.append(request)
            if request.HasField("open"):
                accepted = dataset_pb2.UploadAccepted(
                    upload="up-1", digest="00" * 32, window_bytes=1 << 20
                )
                yield dataset_pb2.UploadDatasetResponse(accepted=accepted)
            if any(pair.text == "bad" for pair in request.pairs.pairs):
                bad = dataset_pb2.RejectedRow(where="pairs[0]", field="text", reason="no")
                refused = dataset_pb2.DatasetReport(rows=1, bad_rows=1, listed=[bad])
                yield dataset_pb2.UploadDatasetResponse(refused=refused)
                list(requests)
                context.abort_with_status(rich(code_pb2.INVALID_ARGUMENT, "DATASET_INVALID", "no"))
            if request.HasField("close"):
                break
        if any(request.image.data == b"known" for request in got):
            status = rich(
                code_pb2.ALREADY_EXISTS, "DATASET_CONTENT_EXISTS", "known", dataset="ds-known"
            )
            context.abort_with_status(status)
        found = dataset_pb2.Dataset(id="ds-1", name=got[0].open.name)
        yield dataset_pb2.UploadDatasetResponse(dataset=found)

    def GetDataset(self, request: Any, context: Any) -> dataset_pb2.Dataset:
        names = [got[0].open.name for got in self.uploads]
        if request.dataset not in names:
            context.abort_with_status(rich(code_pb2.NOT_FOUND, "DATASET_NOT_FOUND", "none"))
        return dataset_pb2.Dataset(id="ds-1", name=request.dataset)


class FakeJobs(job_pb2_grpc.JobServiceServicer, finetune_pb2_grpc.FineTuneServiceServicer):
    """One job of 20 events; its watch breaks after some, and repeats the last."""

    events = 20

    def __init__(self) -> None:
        self.started: list[finetune_pb2.FineTuneRequest] = []
        self.break_after = [3, 7]
        self.watches: list[int] = []
        self.final = job_pb2.JOB_STATE_SUCCEEDED
        self.hang = False
        self.advice = ""

    def FineTune(self, request: Any, context: Any) -> job_pb2.Job:
        self.started.append(request)
        job = self.GetJob(request, context)
        job.advice = self.advice
        return job

    def GetJob(self, request: Any, context: Any) -> job_pb2.Job:
        return job_pb2.Job(id="j-1", name="run", state=self.final, last_seq=self.events)

    def WatchJob(self, request: Any, context: Any) -> Iterator[job_pb2.JobEvent]:
        self.watches.append(request.after_seq)
        if self.hang:
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait(30)
            return
        stop = self.break_after.pop(0) if self.break_after else None
        for sent, seq in enumerate(range(max(request.after_seq, 1), self.events + 1)):
            if sent == stop:
                if len(self.watches) % 2:
                    context.abort_with_status(rich(code_pb2.UNAVAILABLE, "SHUTTING_DOWN", "bye"))
                return
            last = job_pb2.StateEvent(state=self.final)
            line = job_pb2.LogEvent(level=job_pb2.LogEvent.LEVEL_INFO, message=f"line {seq}")
            if seq == self.events:
                yield job_pb2.JobEvent(seq=seq, state=last)
            else:
                yield job_pb2.JobEvent(seq=seq, log=line)


@pytest.fixture
def fake() -> Iterator[FakeEncode]:
    """The server's behaviour; listens on `fake.address`."""
    service = FakeEncode()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    encode_pb2_grpc.add_EncodeServiceServicer_to_server(service, server)
    server_pb2_grpc.add_ServerServiceServicer_to_server(service, server)
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(service.datasets, server)
    job_pb2_grpc.add_JobServiceServicer_to_server(service.jobs, server)
    finetune_pb2_grpc.add_FineTuneServiceServicer_to_server(service.jobs, server)
    port = server.add_insecure_port("127.0.0.1:0")
    service.address = f"127.0.0.1:{port}"
    server.start()
    yield service
    service.cancelled.set()
    server.stop(None).wait()
