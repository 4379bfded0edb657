"""Calls that several processes take, as one server would."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.server import spawn_server

from hotclip_proto.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    encode_pb2,
    encode_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    types_pb2,
)
from hotclip_server.config import ServerConfig
from hotclip_server.frontends.supervisor import Frontends
from hotclip_server.testing import FakeEncoder, RunningServer, running_server

FRONTENDS = 2
CHANNELS = 8
"""Each on a connection of its own: that all reach one process is one chance in 128."""
SWAPS = 12


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningServer]:
    config = ServerConfig(
        port=0, device="cpu", model="fake:a", data_dir=tmp_path / "data", frontends=FRONTENDS
    )
    async with running_server(config) as server:
        yield server


def frontends(server: RunningServer) -> Frontends:
    found = server.app.parts.frontends
    assert found is not None
    return found


def channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])


async def until_not(true: Callable[[], object], limit_s: float) -> None:
    async with asyncio.timeout(limit_s):
        while true():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


def request(seed: int, version: str = "") -> encode_pb2.EncodeRequest:
    rng = np.random.default_rng(seed)
    items = [
        types_pb2.EncodeItem(text=f"text {n}") for n in rng.integers(0, 99, rng.integers(1, 9))
    ]
    images = rng.integers(0, 256, (rng.integers(0, 5), 8, 8, 3), np.uint8)
    for pixels in images:
        tensor = types_pb2.ImageTensor(data=pixels.tobytes(), height=8, width=8)
        items.append(types_pb2.EncodeItem(tensor=tensor))
    return encode_pb2.EncodeRequest(items=items, version=version)


def expected(encoder: FakeEncoder, asked: encode_pb2.EncodeRequest) -> bytes:
    rows = []
    for item in asked.items:
        if item.HasField("text"):
            rows.append(encoder.vector(encoder.prepare_text(item.text)))
        else:
            rows.append(encoder.vector(encoder.prepare_tensor(item.tensor.data, 8, 8)))
    return np.stack(rows).astype("<f4").tobytes()


@dataclass
class Load:
    """Clients that encode as fast as they are answered, and check everything."""

    server: RunningServer
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    failed: list[grpc.StatusCode] = field(default_factory=list)
    spans: list[tuple[float, float, str]] = field(default_factory=list)
    """Sent, answered, version."""

    async def work(self, number: int) -> None:
        async with channel(self.server.address) as connection:
            stub = encode_pb2_grpc.EncodeServiceStub(connection)
            seed = number
            while True:
                seed += CHANNELS
                asked = request(seed)
                sent = time.monotonic()
                try:
                    answer = await stub.Encode(asked, timeout=30, wait_for_ready=True)
                except grpc.aio.AioRpcError as error:
                    self.failed.append(error.code())
                    continue
                self.spans.append((sent, time.monotonic(), answer.version))
                encoder = self.server.loader.encoders[answer.version]
                # Texts are normalised once more, which may round.
                np.testing.assert_allclose(
                    np.frombuffer(answer.vectors.data, "<f4"),
                    np.frombuffer(expected(encoder, asked), "<f4"),
                    atol=1e-6,
                )

    async def __aenter__(self) -> Load:
        self.tasks = [asyncio.create_task(self.work(number)) for number in range(CHANNELS)]
        await self.answers(3 * CHANNELS)
        return self

    async def answers(self, count: int) -> None:
        """Waits for more."""
        until = len(self.spans) + count
        async with asyncio.timeout(60):
            while len(self.spans) < until:
                for task in self.tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.005)

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        done = await asyncio.gather(*self.tasks, return_exceptions=True)
        for result in done:
            if not isinstance(result, asyncio.CancelledError):
                raise AssertionError(result)


async def test_swaps_are_linearisable_over_all_front_ends(running: RunningServer) -> None:
    swaps: list[tuple[float, float, str]] = []
    """Called, returned, live version."""
    async with Load(running) as load, channel(running.address) as connection:
        models = model_pb2_grpc.ModelServiceStub(connection)
        first = running.app.parts.registry.model_state().live_version
        second = (await models.LoadVersion(model_pb2.LoadVersionRequest(source="fake:b"))).id
        for swap in range(SWAPS):
            target = first if swap % 2 else second
            called = time.monotonic()
            if swap % 3 == 2:
                await models.Rollback(model_pb2.RollbackRequest())
            else:
                await models.ActivateVersion(model_pb2.ActivateVersionRequest(version=target))
            swaps.append((called, time.monotonic(), target))
            await load.answers(2 * CHANNELS)
    assert load.failed == []
    ends = [called for called, _, _ in swaps[1:]] + [float("inf")]
    for (called, returned, live), end in zip(swaps, ends, strict=True):
        span = [one for one in load.spans if one[0] > called and one[1] < end]
        seen = min((answered for _, answered, version in span if version == live), default=returned)
        # Nobody who asks after somebody has seen the new version gets the old one.
        assert {v for sent, _, v in span if sent > min(seen, returned)} <= {live}
    assert {version for _, _, version in load.spans} == {first, second}


async def test_a_version_is_closed_when_no_front_end_pins_it(running: RunningServer) -> None:
    registry = running.app.parts.registry
    closed: list[str] = []
    async with channel(running.address) as connection, Load(running):
        models = model_pb2_grpc.ModelServiceStub(connection)
        loaded = (await models.LoadVersion(model_pb2.LoadVersionRequest(source="fake:b"))).id
        encoder = running.loader.encoders[loaded]
        encoder.close = lambda: closed.append(loaded)  # type: ignore[method-assign]  # watched
        encoder.faults.delay_s = 0.2
        stub = encode_pb2_grpc.EncodeServiceStub(connection)
        pinned = asyncio.ensure_future(stub.Encode(request(1, version=loaded)))
        await asyncio.sleep(0.05)
        await models.UnloadVersion(model_pb2.UnloadVersionRequest(version=loaded))
        assert closed == []
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Encode(request(1, version=loaded))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert (await pinned).version == loaded
        await until_not(lambda: not closed, 5)
    assert [resident.pins for resident, _ in registry] == [FRONTENDS]


async def test_a_front_end_that_dies_takes_only_its_own_calls_along(
    running: RunningServer,
) -> None:
    own = frontends(running)
    async with Load(running) as load:
        for _ in range(2):
            killed = own.pids[0]
            os.kill(killed, signal.SIGKILL)
            await until_not(lambda killed=killed: killed in own.pids, 30)
            await until_not(lambda: len(own.listening) < FRONTENDS, 30)
            await load.answers(3 * CHANNELS)
        async with channel(running.address) as connection:
            models = model_pb2_grpc.ModelServiceStub(connection)
            loaded = await models.LoadVersion(model_pb2.LoadVersionRequest(source="fake:b"))
            await models.ActivateVersion(model_pb2.ActivateVersionRequest(version=loaded.id))
            answer = await encode_pb2_grpc.EncodeServiceStub(connection).Encode(request(1))
            assert answer.version == loaded.id
    assert set(load.failed) <= {grpc.StatusCode.UNAVAILABLE}
    assert len(load.failed) <= 2 * CHANNELS
    # What was under way when the clients went is cancelled.
    await until_not(lambda: running.app.parts.batcher.ledger.items, 5)
    assert [resident.pins for resident, _ in running.app.parts.registry] == [FRONTENDS] * 2


async def test_a_front_end_that_hangs_does_not_hold_up_a_swap(running: RunningServer) -> None:
    own = frontends(running)
    async with channel(running.address) as connection:
        models = model_pb2_grpc.ModelServiceStub(connection)
        await models.GetModel(model_pb2.GetModelRequest())
        # Straight to the registry: the hanging one may be the one that this connection reached.
        registry = running.app.parts.registry
        loaded = await registry.load_version("", "fake:b")
        hanging = own.pids[0]
        os.kill(hanging, signal.SIGSTOP)
        async with asyncio.timeout(20):
            await registry.activate("", loaded.id)
        assert hanging not in own.pids
        await until_not(lambda: len(own.listening) < FRONTENDS, 30)
    async with Load(running) as load:
        pass
    assert {version for _, _, version in load.spans} == {loaded.id}


async def test_streams_and_their_ends_pass_through(running: RunningServer) -> None:
    drain = running.app.parts.drain
    async with channel(running.address) as connection:
        watch = model_pb2_grpc.ModelServiceStub(connection).WatchModels(
            model_pb2.WatchModelsRequest()
        )
        assert (await watch.read()).live_version
        health = health_pb2_grpc.HealthStub(connection).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert len(drain.streaming) == 2
        watch.cancel()
        health.cancel()
        await until_not(lambda: drain.streaming, 5)  # it ends in the device process too
        late = model_pb2_grpc.ModelServiceStub(connection).WatchModels(
            model_pb2.WatchModelsRequest(), timeout=0.3
        )
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in late:
                pass
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        upload = dataset_pb2_grpc.DatasetServiceStub(connection).UploadDataset()
        await upload.write(dataset_pb2.UploadDatasetRequest())
        await upload.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await upload.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "grpc-status-details-bin" in dict(refused.value.trailing_metadata() or ())
        info = await server_pb2_grpc.ServerServiceStub(connection).GetServerInfo(
            server_pb2.GetServerInfoRequest()
        )
        assert len(info.versions) == 1
        unknown = connection.unary_unary("/hotclip.v1.Nothing/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await unknown(b"")
        assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_cancelled_encode_is_cancelled_on_the_device(running: RunningServer) -> None:
    running.encoder.faults.delay_s = 0.3
    async with AsyncExitStack() as stack:
        stubs = [
            encode_pb2_grpc.EncodeServiceStub(
                await stack.enter_async_context(channel(running.address))
            )
            for _ in range(CHANNELS)
        ]
        calls = [stub.Encode(request(n)) for n, stub in enumerate(stubs)]
        await asyncio.sleep(0.15)
        for call in calls:
            call.cancel()
        await until_not(lambda: running.app.parts.batcher.ledger.items, 5)
        running.encoder.faults.delay_s = 0.0
        assert (await stubs[0].Encode(request(0))).version


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_and_no_memory_is_left(tmp_path: Path, end: signal.Signals) -> None:
    shared = set(Path("/dev/shm").iterdir())
    server = spawn_server(tmp_path / "data", "--device", "cpu", "--frontends", str(FRONTENDS))
    server.wait_ready()
    assert (tmp_path / "data" / "frontends").stat().st_mode & 0o777 == 0o700
    found = children(server.process.pid)
    assert len([pid for pid in found if b"frontends" in command(pid)]) == FRONTENDS
    server.process.send_signal(end)
    assert server.wait(30) == (0 if end is signal.SIGTERM else -end)
    until = time.monotonic() + 20
    while any(alive(pid) for pid in found):
        assert time.monotonic() < until, [command(pid) for pid in found if alive(pid)]
        time.sleep(0.02)
    assert set(Path("/dev/shm").iterdir()) <= shared
    if end is signal.SIGTERM:
        assert not (tmp_path / "data" / "frontends").exists()
        assert "Traceback" not in server.log


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
