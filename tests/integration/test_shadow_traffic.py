"""Requests that also run on another version: figures are right, requests feel nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.moved import MovedEncoder, put_moved

from hotclip import AsyncClient, ShadowTraffic
from hotclip.errors import FailedPrecondition, InvalidArgument, NotFound
from hotclip_proto.v1 import encode_pb2, encode_pb2_grpc
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.config import ServerConfig
from hotclip_server.drift.shift import cosines
from hotclip_server.encoding.protocol import Tower
from hotclip_server.testing import RunningServer, running_server

IMAGE = b"\x89PNG an image"
SOURCE = "fake:moved"
REQUEST = encode_pb2.EncodeRequest(items=[EncodeItem(text="a text")])


async def stage_moved(server: RunningServer, client: AsyncClient) -> tuple[str, MovedEncoder]:
    moved = MovedEncoder(server.encoder, SOURCE, by=0.5, towers=set(Tower))
    put_moved(server.loader, SOURCE, moved)
    return (await client.load_version(SOURCE)).id, moved


async def settled(client: AsyncClient) -> ShadowTraffic:
    """Once every copy has run or was dropped."""
    async with asyncio.timeout(20):
        while True:
            found = await client.shadow_traffic()
            if found.copied == found.compared + sum(found.dropped.values()):
                return found
            await asyncio.sleep(0.01)


async def test_figures_are_those_of_answers_and_copies() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        version, moved = await stage_moved(server, client)
        live = (await client.get_model()).live_version
        with pytest.raises(NotFound) as none:
            await client.shadow_traffic()
        assert none.value.reason == "NO_SHADOW_TRAFFIC"
        began = await client.set_shadow_traffic(version, share=1.0, lifetime_s=60)
        assert (began.active, began.version, began.base_version) == (True, version, live)
        texts = [f"text {n}" for n in range(30)]
        for text in texts:
            answer = await client.encode(text)
            assert answer.version == live
            await settled(client)
        # Several items, both towers, raw features, fewer dimensions: cosines are of all of it.
        items = [EncodeItem(text=text) for text in texts[:5]] + [EncodeItem(image=IMAGE)]
        request = encode_pb2.EncodeRequest(items=items, raw_features=True)
        async with grpc.aio.insecure_channel(server.address) as channel:
            await encode_pb2_grpc.EncodeServiceStub(channel).Encode(request)
        await settled(client)
        await client.encode(IMAGE, dimensions=8)
        found = await settled(client)
        assert (found.requests, found.copied, found.compared) == (32, 32, 32)
        assert (found.dropped, found.failed) == ({}, {})
        base = server.encoder
        rows = [
            np.stack([encoder.vector(encoder.prepare_text(text)) for text in [*texts, *texts[:5]]])
            for encoder in (base, moved)
        ]
        wanted = cosines(*rows)
        tower = found.towers["clip-text"]
        assert (tower.items, found.towers["clip-vision"].items) == (35, 2)
        assert tower.cosine_mean == pytest.approx(wanted.mean(), abs=1e-5)
        assert tower.cosine_quantiles[0.0] == pytest.approx(wanted.min(), abs=1e-5)
        assert 0.8 < wanted.mean() < 0.95
        assert found.live.count == found.shadow.count == 32
        for latency in (found.live, found.shadow):
            assert 0 < latency.p50_us <= latency.p95_us <= latency.p99_us
            assert latency.mean_us > 0

        # Not asked of the live version, or answered by another one: not copied.
        await client.encode("pinned", version=version)
        found = await client.clear_shadow_traffic()
        assert (found.requests, found.active, found.end_reason) == (32, False, "CLEARED")
        await client.encode("nothing goes on")
        assert (await client.clear_shadow_traffic()).requests == 32


async def test_it_ends_when_what_it_is_compared_with_is_not_live_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="hotclip_server")
    async with running_server() as server, AsyncClient(server.address) as client:
        version, _ = await stage_moved(server, client)
        other = (await client.load_version("fake:other")).id
        base = (await client.get_model()).live_version
        await client.set_shadow_traffic(version, share=1.0)
        await client.encode("a text")
        await settled(client)
        # Neither a trial nor what is live already changes what answers.
        await client.activate(other, validate_only=True)
        await client.activate(base)
        assert (await client.shadow_traffic()).active

        await client.activate(other)
        found = await client.shadow_traffic()
        assert (found.active, found.end_reason, found.compared) == (False, "NOT_LIVE", 1)
        said = [r.getMessage() for r in caplog.records if "shadow traffic" in r.getMessage()]
        assert len(said) == 1
        assert version in said[0]
        assert base in said[0]
        # Nobody keeps the version, and going back begins nothing.
        await client.unload_version(version)
        await client.rollback()
        await client.encode("another text")
        found = await client.shadow_traffic()
        assert (found.base_version, found.end_reason, found.requests) == (base, "NOT_LIVE", 1)

        # Also if it is the version itself that goes live; it stays resident, of course.
        await client.set_shadow_traffic(version, share=1.0)
        await client.activate(version)
        assert (await client.shadow_traffic()).end_reason == "NOT_LIVE"
        assert (await client.encode("a third")).version == version


async def test_requests_neither_fail_nor_change_under_a_flood_and_copies_are_dropped() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        version, moved = await stage_moved(server, client)
        base = server.encoder
        moved.faults.delay_s = 0.02
        moved.faults.fails = lambda item: item.tower is Tower.VISION
        await client.set_shadow_traffic(version, share=1.0)

        # A connection has 100 streams.
        room = asyncio.Semaphore(50)

        async def ask(n: int) -> None:
            text = f"flood {n}"
            async with room:
                answer = await client.encode([text, IMAGE])
            wanted = [base.vector(base.prepare_text(text)), base.vector(base.prepare_image(IMAGE))]
            np.testing.assert_allclose(np.asarray(answer), wanted, atol=1e-6)

        await asyncio.gather(*(ask(n) for n in range(200)))
        found = await settled(client)
        assert (found.requests, found.copied) == (200, 200)
        assert sum(found.dropped.values()) > 50
        assert set(found.dropped) <= {"BUSY", "PRESSURE", "LATE"}
        assert found.compared >= 1
        # An image fails on the version, and the rest of the copy is compared all the same.
        assert found.failed == {"ENCODE_FAILED": found.compared}
        assert found.towers["clip-text"].items >= found.compared
        assert found.towers["clip-vision"].items == 0


def ask(address: str, received: threading.Event) -> None:
    with grpc.insecure_channel(address) as channel:
        encode_pb2_grpc.EncodeServiceStub(channel).Encode(REQUEST)
        received.set()


def ask_in_a_stream(address: str, received: threading.Event) -> None:
    request = encode_pb2.EncodeStreamRequest(id=1, request=REQUEST)
    with grpc.insecure_channel(address) as channel:
        answers = encode_pb2_grpc.EncodeServiceStub(channel).EncodeStream(iter([request]))
        assert next(answers).HasField("limits")
        assert next(answers).answer.id == 1
        received.set()


@pytest.mark.parametrize("asks", [ask, ask_in_a_stream])
async def test_an_answer_has_left_before_its_copy_is_taken(
    asks: Callable[[str, threading.Event], None],
) -> None:
    async with running_server() as server:
        received = threading.Event()
        had_been_received: list[bool] = []

        def take() -> None:
            # Until it returns the loop of the server does nothing else.
            had_been_received.append(received.wait(20))

        server.app.parts.traffic.offer = lambda *_: take  # type: ignore[method-assign]  # a witness of this test
        await asyncio.to_thread(asks, server.address, received)
        assert had_been_received == [True]


async def test_a_stream_keeps_nothing_of_what_it_has_answered() -> None:
    async with (
        running_server() as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        kept: list[weakref.ref[Callable[[], None]]] = []

        def offer(*request: object) -> Callable[[], None]:
            take = partial(len, request)
            kept.append(weakref.ref(take))
            return take  # type: ignore[return-value]  # nobody looks at what it gives

        server.app.parts.traffic.offer = offer  # type: ignore[method-assign]  # a witness of this test
        stream = encode_pb2_grpc.EncodeServiceStub(channel).EncodeStream()
        await stream.write(encode_pb2.EncodeStreamRequest(id=1, request=REQUEST))
        assert (await stream.read()).HasField("limits")
        assert (await stream.read()).answer.id == 1
        async with asyncio.timeout(10):
            while kept[0]() is not None:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.005)
        stream.cancel()


async def test_a_caller_that_goes_away_leaves_nobody_who_keeps_the_version() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        version, moved = await stage_moved(server, client)
        await client.unload_version(version)
        moved.faults.hang = threading.Event()  # The probes wait while it is loaded.
        setting = asyncio.create_task(client.set_shadow_traffic(version, share=1.0))
        await asyncio.sleep(0.2)
        setting.cancel()
        await asyncio.wait([setting])
        await asyncio.sleep(0.2)
        moved.faults.hang.set()
        async with asyncio.timeout(10):
            while (await client.get_version(version)).state.value == "STORED":  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.05)
        # Set as a whole: it can be seen and cleared, and then nothing keeps the version.
        assert (await client.shadow_traffic()).active
        await client.clear_shadow_traffic()
        assert (await client.unload_version(version)).state.value == "STORED"


async def test_a_share_a_lifetime_and_a_version_that_is_kept() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        version, _ = await stage_moved(server, client)
        other = (await client.load_version("fake:other")).id
        for how in ({"share": 0.0}, {"share": 1.5}, {"share": 0.5, "lifetime_s": 0.5}):
            with pytest.raises(InvalidArgument):
                await client.set_shadow_traffic(version, **how)
        live = (await client.get_model()).live_version
        with pytest.raises(InvalidArgument, match="live"):
            await client.set_shadow_traffic(live, share=0.5)
        with pytest.raises(NotFound):
            await client.set_shadow_traffic("nobody", share=0.5)

        await client.set_shadow_traffic(other, share=1.0)
        await client.set_shadow_traffic(version, share=0.3, lifetime_s=3.0)
        draws = iter([0.1, 0.5, 0.29, 0.3])
        server.app.parts.traffic._draw = lambda: next(draws)
        with pytest.raises(FailedPrecondition, match="shadow-traffic"):
            await client.unload_version(version)
        await client.unload_version(other)  # It was replaced, so nothing keeps it.
        for n in range(4):
            await client.encode(f"drawn {n}")
        assert (await client.shadow_traffic()).copied == 2
        async with asyncio.timeout(10):
            while (await client.shadow_traffic()).active:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.05)
        assert (await client.shadow_traffic()).end_reason == "EXPIRED"
        await client.unload_version(version)


async def test_front_ends_hand_over_what_is_to_be_copied(tmp_path: Path) -> None:
    config = ServerConfig(
        port=0, device="cpu", model="fake:default", data_dir=tmp_path, frontends=1
    )
    async with running_server(config) as server, AsyncClient(server.address) as client:
        version, moved = await stage_moved(server, client)
        await client.encode("before it was set")
        await client.set_shadow_traffic(version, share=1.0)
        await asyncio.sleep(0.2)  # The front end hears of it on another way.
        texts = [f"text {n}" for n in range(10)]
        for text in texts:
            await client.encode(text)
            await settled(client)
        await client.encode(IMAGE)
        await client.encode([b"\x89PNG" + bytes(2 << 20)])
        found = await settled(client)
        async with asyncio.timeout(10):
            while found.copied < 12:
                found = await settled(client)
        rows = [
            np.stack([encoder.vector(encoder.prepare_text(text)) for text in texts])
            for encoder in (server.encoder, moved)
        ]
        tower = found.towers["clip-text"]
        assert tower.items == 10
        assert tower.cosine_mean == pytest.approx(cosines(*rows).mean(), abs=1e-5)
        assert (found.requests, found.compared) == (12, 11)
        assert found.dropped == {"TOO_LARGE": 1}
        await client.clear_shadow_traffic()
        await asyncio.sleep(0.2)
        await client.encode("after it was cleared")
        assert (await client.shadow_traffic()).requests == 12


async def test_the_command() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        version, _ = await stage_moved(server, client)
        command = [sys.executable, "-m", "hotclip", "--server", server.address, "shadow"]

        async def shell(*arguments: str) -> str:
            done = await asyncio.to_thread(
                subprocess.run, [*command, *arguments], capture_output=True, text=True, check=True
            )
            return done.stdout

        assert "goes on" in await shell("set", version, "--share", "1")
        await client.encode("a text")
        await settled(client)
        shown = json.loads(await shell("show", "--json"))
        assert (shown["requests"], shown["compared"]) == (1, 1)
        assert shown["towers"]["clip-text"]["items"] == 1
        assert "CLEARED" in await shell("clear")
