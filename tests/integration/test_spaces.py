"""Spaces over gRPC and several front ends: which version answers, and what is refused."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from support.history import Span, check_versions
from support.search import item_vector, picture, text_point, text_query

from hotclip_proto.v1 import (
    encode_pb2,
    encode_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.config import ServerConfig
from hotclip_server.testing import RunningServer, running_server

CHANNELS = 8
"""Each on a connection of its own: that all reach one process is one chance in 128."""
SWAPS = 9
QUERY = text_query("a query")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningServer]:
    config = ServerConfig(
        port=0, device="cpu", model="fake:a", data_dir=tmp_path / "data", frontends=2
    )
    async with running_server(config) as server:
        yield server


class Stubs:
    """Every service that the tests need, on one connection."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.encode: Any = encode_pb2_grpc.EncodeServiceStub(channel)
        self.models: Any = model_pb2_grpc.ModelServiceStub(channel)
        self.search: Any = search_pb2_grpc.SearchServiceStub(channel)

    async def load(self, source: str) -> str:
        version = await self.models.LoadVersion(model_pb2.LoadVersionRequest(source=source))
        return str(version.id)

    async def activate(self, version: str) -> None:
        await self.models.ActivateVersion(model_pb2.ActivateVersionRequest(version=version))

    async def find(self, *queries: search_pb2.Query, space: str = "") -> Any:
        request = search_pb2.SearchRequest(
            collection="c", queries=queries or [QUERY], expected_space_id=space, limit=100
        )
        return await self.search.Search(request)


@pytest.fixture
async def stubs(running: RunningServer) -> AsyncIterator[list[Stubs]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(CHANNELS):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(running.address, options)
            made.append(Stubs(await stack.enter_async_context(channel)))
        yield made


async def mismatch(call: Any) -> dict[str, str]:
    """The metadata of a call that must be refused for its space."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert info.reason == "SPACE_MISMATCH"
    return dict(info.metadata)


async def test_an_expected_space_is_served_while_its_version_is_resident(
    running: RunningServer, stubs: list[Stubs]
) -> None:
    one = running.app.parts.registry.model_state().live_version
    two = await stubs[0].load("fake:b")
    spaces = {v: running.loader.encoders[v].spec.space_id for v in (one, two)}
    items = [EncodeItem(text="a"), picture(1)]
    await stubs[0].search.CreateCollection(search_pb2.CreateCollectionRequest(name="c"))
    points = [text_point("t", "text")]
    stored = await stubs[0].search.Upsert(search_pb2.UpsertRequest(collection="c", points=points))
    old = running.loader.encoders[one].spec
    assert stored.text_encoder_id == old.text_encoder_id
    assert stored.vision_encoder_id == old.vision_encoder_id

    async def encoded(stub: Stubs, space: str) -> str:
        """By Encode, EncodeStream and Rank, which agree."""
        request = encode_pb2.EncodeRequest(items=items, expected_space_id=space)
        answer = await stub.encode.Encode(request)
        vectors = [item_vector(running.loader.encoders[answer.version], item) for item in items]
        rows = np.frombuffer(answer.vectors.data, "<f4").reshape(2, -1)
        np.testing.assert_allclose(rows, vectors, atol=1e-6)
        stream = stub.encode.EncodeStream(
            iter([encode_pb2.EncodeStreamRequest(id=1, request=request)])
        )
        *_, last = [message async for message in stream]
        rank = encode_pb2.RankRequest(query=items[0], candidates=items[1:], expected_space_id=space)
        ranked = await stub.encode.Rank(rank)
        cosine = float(vectors[0] @ vectors[1])
        assert ranked.scores[0].cosine == pytest.approx(cosine, abs=1e-5)
        spec = running.loader.encoders[answer.version].spec
        for told in (answer, last.answer.response, ranked):
            assert told.text_encoder_id == spec.text_encoder_id
            assert told.vision_encoder_id == spec.vision_encoder_id
        spaces_named = {answer.space_id, last.answer.response.space_id, ranked.space_id}
        assert spaces_named == {space}
        (version,) = {answer.version, last.answer.response.version, ranked.version}
        return str(version)

    for live in (one, two):
        await stubs[0].activate(live)
        for stub in stubs:
            for version, space in spaces.items():
                assert await encoded(stub, space) == version
    found = await stubs[1].find(space=spaces[one])
    assert (found.version, found.space_id) == (one, spaces[one])
    assert found.text_encoder_id == old.text_encoder_id
    assert found.vision_encoder_id == old.vision_encoder_id
    own = item_vector(running.loader.encoders[one], QUERY.item).astype("<f4").tobytes()
    vector = search_pb2.Query(vector=search_pb2.Vector(data=own, space_id=spaces[one]))
    assert (await stubs[2].find(vector)).version == one
    other = search_pb2.Query(vector=search_pb2.Vector(data=own, space_id=spaces[two]))
    for refused in (stubs[1].find(space=spaces[two]), stubs[2].find(other)):
        told = await mismatch(refused)
        assert (told["space_id"], told["expected_space_id"]) == (spaces[one], spaces[two])

    await stubs[0].search.DeleteCollection(search_pb2.DeleteCollectionRequest(name="c"))
    release = model_pb2.UnloadVersionRequest(version=one, release_rollback=True)
    await stubs[0].models.UnloadVersion(release)
    for stub in stubs:
        assert await encoded(stub, spaces[two]) == two
        encode = encode_pb2.EncodeRequest(items=items, expected_space_id=spaces[one])
        rank = encode_pb2.RankRequest(
            query=items[0], candidates=items, expected_space_id=spaces[one]
        )
        for refused in (stub.encode.Encode(encode), stub.encode.Rank(rank)):
            told = await mismatch(refused)
            expected = {"space_id": spaces[two], "version": two, "expected_space_id": spaces[one]}
            assert told == expected


async def test_pictures_follow_on_every_front_end(
    running: RunningServer, stubs: list[Stubs]
) -> None:
    one = running.app.parts.registry.model_state().live_version
    two = await stubs[0].load("fake:tuned@a")
    create = search_pb2.CreateCollectionRequest(name="c", keep_sources=False)
    await stubs[0].search.CreateCollection(create)
    pictures = {f"p{n}": picture(n) for n in range(20)}
    points = [search_pb2.Point(id=name, item=item) for name, item in pictures.items()]
    await stubs[0].search.Upsert(search_pb2.UpsertRequest(collection="c", points=points))
    clock, spans, flips = itertools.count(), list[Span](), list[Span]()
    stopping = asyncio.Event()

    async def search(stub: Stubs) -> None:
        while not stopping.is_set():
            asked = next(clock)
            found = await stub.find()
            spans.append(Span(asked, next(clock), found.version))
            encoder = running.loader.encoders[found.version]
            query = item_vector(encoder, QUERY.item)
            scores = {n: float(item_vector(encoder, p) @ query) for n, p in pictures.items()}
            hits = {hit.id: hit.score for hit in found.results[0].hits}
            assert hits == pytest.approx(scores, abs=1e-5)

    async with asyncio.TaskGroup() as group:
        for stub in stubs:
            group.create_task(search(stub))
        for swap in range(SWAPS):
            target = one if swap % 2 else two
            asked = next(clock)
            if swap % 3 == 2:
                await stubs[swap % CHANNELS].models.Rollback(model_pb2.RollbackRequest())
            else:
                await stubs[swap % CHANNELS].activate(target)
            flips.append(Span(asked, next(clock), target))
            until = len(spans) + 2 * CHANNELS
            while len(spans) < until:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.005)
        stopping.set()
    assert {span.version for span in spans} == {one, two}
    check_versions(flips, spans)
