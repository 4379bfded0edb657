"""A device that has failed for good: every call says so, and health tells whoever restarts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from hotclip_proto.v1 import encode_pb2, encode_pb2_grpc, types_pb2
from hotclip_server.config import ServerConfig
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.errors import DeviceLost
from hotclip_server.testing import FakeEncoder, FakeLoader, running_server


class Breaking(FakeEncoder):
    lost = False

    def encode(self, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        if self.lost:
            raise DeviceLost
        return super().encode(tower, batch)


async def test_a_lost_device_ends_serving(tmp_path: Path) -> None:
    loader = FakeLoader()
    version = loader.import_source("fake:default").id
    encoder = loader.encoders[version] = Breaking("fake:default")
    config = ServerConfig(port=0, device="cpu", model="fake:default", data_dir=tmp_path)
    config = replace(config, watchdog_s=0.4)
    async with running_server(config, loader=loader) as server:
        channel = grpc.aio.insecure_channel(server.address)
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        encoder.lost = True
        stub = encode_pb2_grpc.EncodeServiceStub(channel)
        items = [types_pb2.EncodeItem(text=f"text {number}") for number in range(3)]
        answer = await stub.Encode(encode_pb2.EncodeRequest(items=items))
        assert [error.reason for error in answer.errors] == ["DEVICE_LOST"] * 3
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await channel.close()


def test_its_reason_is_its_own() -> None:
    error = DeviceLost()
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason == "DEVICE_LOST"
    with pytest.raises(DeviceLost, match="restart"):
        raise error
