"""What callers see of a server that has not loaded its model yet."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from benchmarks.server_process import free_port
from hotclip_proto.v1 import encode_pb2, encode_pb2_grpc, job_pb2, job_pb2_grpc, types_pb2
from hotclip_server.app import build
from hotclip_server.config import ServerConfig
from hotclip_server.testing import FakeEncoder, FakeLoader


class SlowLoader(FakeLoader):
    """Loads when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def load(self, version_id: str, *, device: str) -> FakeEncoder:
        assert self.go.wait(30)
        return super().load(version_id, device=device)


def reason_of(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, float]:
    """Code, reason, and seconds after which to try again."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in rpc_status.from_call(error).details:
        detail.Unpack(info)
        detail.Unpack(retry)
    return error.code(), info.reason, retry.retry_delay.ToTimedelta().total_seconds()


async def test_calls_are_told_to_come_back_until_the_model_is_loaded(tmp_path: Path) -> None:
    loader = SlowLoader()
    port = free_port()
    config = ServerConfig(port=port, device="cpu", model="fake:slow", data_dir=tmp_path)
    app = build(config, loader=loader)
    starting = asyncio.create_task(app.start())
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            encoding = encode_pb2_grpc.EncodeServiceStub(channel)
            request = encode_pb2.EncodeRequest(items=[types_pb2.EncodeItem(text="a")])
            jobs = job_pb2_grpc.JobServiceStub(channel)
            health = health_pb2_grpc.HealthStub(channel)
            state = await health.Check(
                health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True
            )
            assert state.status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as unary:
                await encoding.Encode(request, timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as stream:
                await jobs.WatchJob(job_pb2.WatchJobRequest(job="any"), timeout=10).read()
            for refused in (unary.value, stream.value):
                code, reason, again_s = reason_of(refused)
                assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STARTING")
                assert again_s > 0

            loader.go.set()
            await starting
            answer = await encoding.Encode(request, timeout=10)
            assert answer.vectors.count == 1
    finally:
        loader.go.set()
        await asyncio.gather(starting, return_exceptions=True)
        await app.stop()
