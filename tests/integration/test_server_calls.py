"""The real server stack around a fake encoder: batching, faults, errors, streams, health."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from hotclip_proto.v1 import (
    encode_pb2,
    encode_pb2_grpc,
    finetune_pb2,
    finetune_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    types_pb2,
)
from hotclip_server.config import ServerConfig
from hotclip_server.testing import RunningServer, running_server

Item = types_pb2.EncodeItem
Request = encode_pb2.EncodeRequest
StreamRequest = encode_pb2.EncodeStreamRequest


def texts(*contents: str) -> Request:
    return Request(items=[Item(text=content) for content in contents])


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return ServerConfig(port=0, device="cpu", model="fake:a", data_dir=tmp_path, watchdog_s=0.4)


@pytest.fixture
async def running(config: ServerConfig) -> AsyncIterator[RunningServer]:
    async with running_server(config) as server:
        server.encoder.batches.clear()
        yield server


@pytest.fixture
async def channel(running: RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> encode_pb2_grpc.EncodeServiceStub:
    return encode_pb2_grpc.EncodeServiceStub(channel)


def details(error: grpc.aio.AioRpcError, kind: type) -> list:
    found = []
    for detail in rpc_status.from_call(as_call(error)).details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


def as_call(error: grpc.aio.AioRpcError):
    """rpc_status reads the parts of a synchronous call."""

    class Call:
        code = staticmethod(error.code)
        details = staticmethod(error.details)
        trailing_metadata = staticmethod(lambda: tuple(error.trailing_metadata()))

    return Call


async def test_requests_of_many_callers_share_batches(running, stub):
    running.encoder.faults.delay_s = 0.02
    answers = await asyncio.gather(*(stub.Encode(texts(f"t{n}")) for n in range(60)))
    for number, answer in enumerate(answers):
        expected = running.encoder.vector(running.encoder.prepare_text(f"t{number}"))
        assert np.frombuffer(answer.vectors.data, "<f4") == pytest.approx(expected, abs=1e-6)
    sizes = [size for _, size in running.encoder.batches]
    assert sum(sizes) == 60
    assert len(sizes) <= 20
    assert running.app.parts.batcher.figures.items >= 60


async def test_a_cancelled_call_never_reaches_the_encoder(running, stub):
    gate = threading.Event()
    running.encoder.faults.hang = gate
    first = stub.Encode(texts("first"))
    await asyncio.sleep(0.1)
    doomed = stub.Encode(texts(*(f"doomed {n}" for n in range(50))))
    await asyncio.sleep(0.1)
    doomed.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await stub.Encode(texts(*(f"late {n}" for n in range(50))), timeout=0.1)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.sleep(0.1)
    assert running.app.parts.batcher.ledger.items == 1
    gate.set()
    await first
    await stub.Encode(texts("last"))
    assert sum(size for _, size in running.encoder.batches) == 2


async def test_only_the_culprit_of_a_batch_fails(running, stub):
    running.encoder.faults.fails = lambda prepared: prepared.array[0] == ord("!")
    running.encoder.faults.not_finite = lambda prepared: prepared.array[0] == ord("?")
    answer = await stub.Encode(texts(*"abc!def?"))
    assert {e.index: (e.code, e.reason) for e in answer.errors} == {
        3: (13, "ENCODE_FAILED"),
        7: (13, "ENCODE_FAILED"),
    }
    assert "fake encoder" not in str(answer.errors)


async def test_a_full_queue_says_when_to_come_back(config, tmp_path):
    small = replace(config, max_queue_items=4)
    async with (
        running_server(small) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = encode_pb2_grpc.EncodeServiceStub(channel)
        gate = threading.Event()
        server.encoder.faults.hang = gate
        waiting = stub.Encode(texts(*"abc"))
        await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Encode(texts(*"de"))
        error = refused.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert details(error, error_details_pb2.ErrorInfo)[0].reason == "QUEUE_FULL"
        assert details(error, error_details_pb2.RetryInfo)[0].retry_delay.ToMilliseconds() >= 50
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 50
        gate.set()
        assert (await waiting).vectors.count == 3
        # Larger than the queue: in parts.
        assert (await stub.Encode(texts(*"abcdefghij"))).vectors.count == 10


# Torch raises NotImplementedError where a device lacks an operator: no RPC is left out.
@pytest.mark.parametrize("fault", [ZeroDivisionError, NotImplementedError])
async def test_a_fault_is_internal_with_a_request_id(running, stub, monkeypatch, caplog, fault):
    def broken(*_args: str) -> None:
        raise fault("a secret of the server")

    monkeypatch.setattr(running.app.parts.registry, "pin", broken)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Encode(texts("x"))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    (info,) = details(failed.value, error_details_pb2.ErrorInfo)
    assert info.metadata["request_id"] in caplog.text
    assert "a secret of the server" in caplog.text
    assert "secret" not in failed.value.details()

    async def one() -> AsyncIterator[StreamRequest]:
        yield StreamRequest(id=5, request=texts("x"))

    _, event = [event async for event in stub.EncodeStream(one())]
    assert (event.answer.id, event.answer.error.code) == (5, 13)


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x0a\x04\x0a\x02\xff\xfe"])
async def test_a_message_of_another_type_is_an_invalid_argument(channel, message):
    method = "/hotclip.v1.EncodeService/Encode"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channel.unary_unary(method)(message)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(refused.value, error_details_pb2.ErrorInfo)[0].reason == "MESSAGE_INVALID"
    stream = channel.stream_stream("/hotclip.v1.EncodeService/EncodeStream")
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in stream(iter([b"\xff\xff\xff"])):
            pass
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "DecodeError" not in (refused.value.details() or "") + (ended.value.details() or "")


async def test_an_answer_over_the_message_limit_says_so(config):
    small = replace(config, max_message_bytes=64 << 10)
    async with (
        running_server(small) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = encode_pb2_grpc.EncodeServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Encode(texts(*("x" for _ in range(600))))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info = details(refused.value, error_details_pb2.ErrorInfo)[0]
        assert info.reason == "ANSWER_TOO_LARGE"


async def test_a_listing_goes_on_while_collections_are_deleted(channel):
    stub = search_pb2_grpc.SearchServiceStub(channel)
    for n in range(30):
        await stub.CreateCollection(search_pb2.CreateCollectionRequest(name=f"c{n:02}"))
    for n in range(29, 24, -1):
        listing = stub.ListCollections(search_pb2.ListCollectionsRequest())
        deletion = stub.DeleteCollection(search_pb2.DeleteCollectionRequest(name=f"c{n:02}"))
        listed, _ = await asyncio.gather(listing, deletion)
        assert len(listed.collections) in (n, n + 1)


async def test_a_cancellation_from_within_does_not_hang_the_client(running, stub, monkeypatch):
    def cancelled(*_args: str) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(running.app.parts.registry, "pin", cancelled)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Encode(texts("x"), timeout=5)
    assert failed.value.code() is grpc.StatusCode.INTERNAL


async def test_what_is_not_built_is_unimplemented(channel):
    # A server of fake encoders trains nothing.
    finetune = finetune_pb2_grpc.FineTuneServiceStub(channel).FineTune
    for call in (
        finetune(finetune_pb2.FineTuneRequest()),
        channel.unary_unary("/hotclip.v1.EncodeService/Nothing")(b""),
        channel.unary_unary("/no.Service/At")(b""),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        (info,) = details(refused.value, error_details_pb2.ErrorInfo)
        assert (info.domain, info.reason) == ("hotclip", "UNIMPLEMENTED")


async def test_a_stream_is_held_back_at_its_limit(running, stub):
    gate = threading.Event()
    running.encoder.faults.hang = gate
    sent = 0

    async def requests() -> AsyncIterator[StreamRequest]:
        nonlocal sent
        for number in range(200):
            # Large enough that HTTP/2 windows fill.
            yield StreamRequest(id=number, request=texts(*["x" * 8000] * 8))
            sent += 1

    events = aiter(stub.EncodeStream(requests()))
    limit = (await anext(events)).limits.max_in_flight
    await asyncio.sleep(0.5)
    assert running.app.parts.batcher.ledger.items <= limit * 8
    assert sent < 150
    gate.set()
    answers = [event.answer.id async for event in events]
    assert answers == list(range(200))


async def test_an_abandoned_stream_frees_what_it_held(running, stub):
    gate = threading.Event()
    running.encoder.faults.hang = gate

    async def requests() -> AsyncIterator[StreamRequest]:
        for number in range(5):
            yield StreamRequest(id=number, request=texts("x"))
        await asyncio.sleep(60)

    call = stub.EncodeStream(requests())
    await call.read()
    await asyncio.sleep(0.2)
    call.cancel()
    await asyncio.sleep(0.2)
    assert running.app.parts.batcher.ledger.items == 0
    gate.set()


async def test_health_follows_a_hang_and_its_end(running, channel, stub):
    health = health_pb2_grpc.HealthStub(channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="hotclip.v1.EncodeService"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    gate = threading.Event()
    running.encoder.faults.hang = gate
    call = stub.Encode(texts("x"))
    changed = await asyncio.wait_for(watch.read(), 5)
    assert changed.status == health_pb2.HealthCheckResponse.NOT_SERVING
    check = await health.Check(health_pb2.HealthCheckRequest())
    assert check.status == health_pb2.HealthCheckResponse.NOT_SERVING
    gate.set()
    changed = await asyncio.wait_for(watch.read(), 5)
    assert changed.status == health_pb2.HealthCheckResponse.SERVING
    assert (await call).vectors.count == 1
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await health.Check(health_pb2.HealthCheckRequest(service="no.Such"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    watch.cancel()


async def test_a_watcher_that_never_reads_blocks_nobody(running, channel):
    health = health_pb2_grpc.HealthStub(channel)
    deaf = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(20)]
    await asyncio.sleep(0.1)
    for moving in (False, True) * 2000:
        running.app.parts.health.set_moving(moving)
        await asyncio.sleep(0)
    check = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert check.status == health_pb2.HealthCheckResponse.SERVING
    for watch in deaf:
        watch.cancel()


async def test_reflection_lists_every_service(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async for answer in stub.ServerReflectionInfo(ask()):
        names = {service.name for service in answer.list_services_response.service}
    assert {"hotclip.v1.EncodeService", "grpc.health.v1.Health"} <= names
    assert sum(name.startswith("hotclip.v1.") for name in names) == 10


async def test_server_info(running, channel):
    info = await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(
        server_pb2.GetServerInfoRequest()
    )
    assert (info.device, info.precision, info.measuring) == ("cpu", "auto", False)
    assert info.limits.max_items_per_request == 1024
    (version,) = info.versions
    assert version.live
    assert [engine.engine for engine in version.engines] == ["eager", "eager"]
    assert version.dim == running.encoder.spec.dim
    assert info.uptime_s > 0


async def test_stopping_lets_unary_calls_finish_and_ends_streams(config):
    async with running_server(config) as server:
        gate = threading.Event()
        server.encoder.faults.hang = gate
        ledger = server.app.parts.batcher.ledger
        # A connection of its own for the streams: one carries 100 calls at a time.
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with (
            grpc.aio.insecure_channel(server.address) as channel,
            grpc.aio.insecure_channel(server.address, own) as other,
        ):
            stub = encode_pb2_grpc.EncodeServiceStub(channel)
            streams = encode_pb2_grpc.EncodeServiceStub(other)
            ends = [asyncio.create_task(stream_until_end(streams)) for _ in range(20)]
            await until(lambda: ledger.items == 20)
            unary = [asyncio.ensure_future(stub.Encode(texts(f"u{n}"))) for n in range(100)]
            await until(lambda: ledger.items == 120)
            stopping = asyncio.create_task(server.app.stop())
            await until(server.app.parts.drain.draining.is_set)
            late = [asyncio.ensure_future(streams.Encode(texts("late"))) for _ in range(50)]
            await asyncio.wait(late)
            for call in late:
                error = call.exception()
                assert isinstance(error, grpc.aio.AioRpcError)
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert details(error, error_details_pb2.ErrorInfo)[0].reason == "SERVER_STOPPING"
            assert not stopping.done()
            gate.set()
            await stopping
            assert all(answer.vectors.count for answer in await asyncio.gather(*unary))
            for answered, error in await asyncio.gather(*ends):
                # What was taken is answered before the stream ends.
                assert answered == [0]
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert details(error, error_details_pb2.ErrorInfo)[0].reason == "SERVER_STOPPING"


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something inside the server that tells nobody."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def stream_until_end(
    stub: encode_pb2_grpc.EncodeServiceStub,
) -> tuple[list[int], grpc.aio.AioRpcError]:
    """Sends one request; gives what was answered until the server ended the stream, and why."""
    answered: list[int] = []

    async def requests() -> AsyncIterator[StreamRequest]:
        yield StreamRequest(id=0, request=texts("s"))
        await asyncio.sleep(60)

    try:
        async for event in stub.EncodeStream(requests()):
            if event.WhichOneof("event") == "answer":
                answered.append(event.answer.id)  # noqa: PERF401 - kept when the stream fails
    except grpc.aio.AioRpcError as error:
        return answered, error
    raise AssertionError("the stream ended without a reason")
