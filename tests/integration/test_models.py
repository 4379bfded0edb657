"""ModelService over gRPC: the real server stack around fake encoders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from hotclip import AsyncClient, Image
from hotclip.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from hotclip_proto.v1 import (
    encode_pb2,
    encode_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    types_pb2,
)
from hotclip_server.config import ServerConfig
from hotclip_server.testing import running_server


@pytest.fixture
async def models() -> AsyncIterator[model_pb2_grpc.ModelServiceAsyncStub]:
    async with running_server() as server, grpc.aio.insecure_channel(server.address) as channel:
        yield model_pb2_grpc.ModelServiceStub(channel)  # type: ignore[misc]  # the async twin


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status and reason of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert info.domain == "hotclip"
    return caught.value.code(), info.reason


async def load(models: Any, source: str, **fields: str) -> model_pb2.Version:
    return await models.LoadVersion(model_pb2.LoadVersionRequest(source=source, **fields))


async def test_a_version_goes_through_its_states(models: Any) -> None:
    loaded = await load(models, "fake:b")
    assert loaded.state == model_pb2.VERSION_STATE_STAGED
    assert (loaded.model, loaded.source, loaded.dim) == ("default", "fake:b", 32)
    assert loaded.create_time.seconds > 0
    before = await models.GetModel(model_pb2.GetModelRequest())
    assert list(before.staged_versions) == [loaded.id]
    trial = model_pb2.ActivateVersionRequest(version=loaded.id, validate_only=True)
    assert await models.ActivateVersion(trial) == before
    activate = model_pb2.ActivateVersionRequest(version=loaded.id, etag=before.etag)
    after = await models.ActivateVersion(activate)
    assert after.live_version == loaded.id
    assert after.previous_version == before.live_version
    assert after.space_id == loaded.space_id
    assert await refused(models.ActivateVersion(activate)) == (
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
    )
    states = {
        version.id: version.state
        for version in (await models.ListVersions(model_pb2.ListVersionsRequest())).versions
    }
    assert states == {
        loaded.id: model_pb2.VERSION_STATE_LIVE,
        before.live_version: model_pb2.VERSION_STATE_PREVIOUS,
    }
    back = await models.Rollback(model_pb2.RollbackRequest(etag=after.etag))
    assert (back.live_version, back.previous_version) == (before.live_version, loaded.id)
    unload = model_pb2.UnloadVersionRequest(version=loaded.id)
    assert await refused(models.UnloadVersion(unload)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "VERSION_IN_USE",
    )
    unload.release_rollback = True
    assert (await models.UnloadVersion(unload)).state == model_pb2.VERSION_STATE_STORED
    await models.DeleteVersion(model_pb2.DeleteVersionRequest(version=loaded.id))
    get = model_pb2.GetVersionRequest(version=loaded.id)
    assert await refused(models.GetVersion(get)) == (
        grpc.StatusCode.NOT_FOUND,
        "VERSION_NOT_FOUND",
    )


async def test_errors_are_named(models: Any) -> None:
    live = (await models.GetModel(model_pb2.GetModelRequest())).live_version
    code = grpc.StatusCode
    for call, expected in (
        (
            models.GetModel(model_pb2.GetModelRequest(model="x")),
            (code.NOT_FOUND, "MODEL_NOT_FOUND"),
        ),
        (load(models, ""), (code.INVALID_ARGUMENT, "SOURCE_INVALID")),
        (load(models, "fake:b", model="../x"), (code.INVALID_ARGUMENT, "MODEL_NAME_INVALID")),
        (
            models.ActivateVersion(model_pb2.ActivateVersionRequest()),
            (code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ),
        (
            models.Rollback(model_pb2.RollbackRequest()),
            (code.FAILED_PRECONDITION, "NO_PREVIOUS_VERSION"),
        ),
        (
            models.UnloadVersion(model_pb2.UnloadVersionRequest(version=live)),
            (code.FAILED_PRECONDITION, "VERSION_IN_USE"),
        ),
        (
            models.DeleteVersion(model_pb2.DeleteVersionRequest(version=live)),
            (code.FAILED_PRECONDITION, "VERSION_IN_USE"),
        ),
        (
            models.ListVersions(model_pb2.ListVersionsRequest(page_token="x")),
            (code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"),
        ),
        (
            models.ListModels(model_pb2.ListModelsRequest(page_size=1001)),
            (code.INVALID_ARGUMENT, "PAGE_SIZE_INVALID"),
        ),
        (
            models.MergeVersions(model_pb2.MergeVersionsRequest(base_version=live)),
            (code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ),
        (
            models.MergeVersions(
                model_pb2.MergeVersionsRequest(base_version=live, tuned_version=live, alpha=2)
            ),
            (code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ),
        *(
            (
                models.ActivateVersion(
                    model_pb2.ActivateVersionRequest(version=live, gates=[gate])
                ),
                (code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
            )
            for gate in (
                model_pb2.MetricGate(metric="monitor"),
                model_pb2.MetricGate(at_least=0.5),
                model_pb2.MetricGate(metric="monitor", at_most=float("nan")),
                model_pb2.MetricGate(metric="monitor", live_margin=0.0),
                model_pb2.MetricGate(metric="monitor", live_margin=-0.1, dataset="d"),
            )
        ),
        (models.Export(model_pb2.ExportRequest()), (code.UNIMPLEMENTED,) * 2),
    ):
        found = await refused(call)
        assert found[0] is expected[0]
        assert found[1] == getattr(expected[1], "name", expected[1])


async def test_a_request_id_makes_loading_idempotent(models: Any) -> None:
    first, second = await asyncio.gather(*(load(models, "fake:b", request_id="r") for _ in "ab"))
    assert first == second
    assert await refused(load(models, "fake:c", request_id="r")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED",
    )


async def test_pages_of_versions_newest_first(models: Any) -> None:
    made = [(await load(models, f"fake:{n}")).id for n in range(4)]
    found, token = list[str](), ""
    while True:
        page = await models.ListVersions(
            model_pb2.ListVersionsRequest(page_size=2, page_token=token)
        )
        assert len(page.versions) <= 2
        found += [version.id for version in page.versions]
        if not (token := page.next_page_token):
            break
    assert found[:4] == made[::-1]
    assert len(found) == 5


async def test_architectures_are_those_of_open_clip(models: Any) -> None:
    found, token = dict[str, model_pb2.Architecture](), ""
    while True:
        page = await models.DescribeArchitectures(
            model_pb2.DescribeArchitecturesRequest(page_size=60, page_token=token)
        )
        found |= {row.name: row for row in page.architectures}
        if not (token := page.next_page_token):
            break
    row = found["ViT-B-32"]
    assert (row.dim, row.image_size, row.context_length) == (512, 224, 77)
    assert "openai" in row.pretrained
    assert len(found) > 100


async def test_watching_a_model(models: Any) -> None:
    stream = models.WatchModels(model_pb2.WatchModelsRequest(model="default"))
    first = await stream.read()
    assert first == await models.GetModel(model_pb2.GetModelRequest())
    version = (await load(models, "fake:b")).id
    await models.ActivateVersion(model_pb2.ActivateVersionRequest(version=version))
    async with asyncio.timeout(10):
        while (await stream.read()).live_version != version:
            pass
    stream.cancel()
    nobody = models.WatchModels(model_pb2.WatchModelsRequest(model="nobody"))
    assert await refused(nobody.read()) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_watchers_are_told_when_the_server_stops() -> None:
    async with running_server() as server:
        channel = grpc.aio.insecure_channel(server.address)
        models: Any = model_pb2_grpc.ModelServiceStub(channel)
        stream = models.WatchModels(model_pb2.WatchModelsRequest())
        await stream.read()
    code, _ = await refused(stream.read())
    assert code is grpc.StatusCode.UNAVAILABLE
    await channel.close()


async def test_gates_and_requests_that_come_again(models: Any) -> None:
    version = (await load(models, "fake:b")).id
    request = model_pb2.ActivateVersionRequest(version=version, request_id="r")
    gate = request.gates.add(metric="monitor", at_least=0.0)
    assert await refused(models.ActivateVersion(request)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "GATE_NOT_MEASURED",
    )
    gate.dataset = "nowhere"
    assert await refused(models.ActivateVersion(request)) == (
        grpc.StatusCode.NOT_FOUND,
        "DATASET_NOT_FOUND",
    )
    request.ClearField("gates")
    after = await models.ActivateVersion(request)
    assert (after.live_version, after.revision) == (version, 2)
    assert after.change_time.seconds > 0
    assert await models.ActivateVersion(request) == after
    rollback = model_pb2.RollbackRequest(request_id="r")
    back = await models.Rollback(rollback)
    assert await models.Rollback(rollback) == back
    assert back.revision == 3


async def test_a_watch_is_resumed(models: Any) -> None:
    version = (await load(models, "fake:b")).id
    for _ in range(2):
        await models.ActivateVersion(model_pb2.ActivateVersionRequest(version=version))
        await models.Rollback(model_pb2.RollbackRequest())
    now = await models.GetModel(model_pb2.GetModelRequest())
    request = model_pb2.WatchModelsRequest(after_revisions={"default": 2})
    stream = models.WatchModels(request)
    seen = [await stream.read() for _ in range(3)]
    assert [state.revision for state in seen] == [3, 4, 5]
    assert [state.live_version == version for state in seen] == [False, True, False]
    assert seen[-1] == now
    stream.cancel()


async def test_several_models_swap_apart_from_each_other() -> None:
    async with running_server() as server, grpc.aio.insecure_channel(server.address) as channel:
        models: Any = model_pb2_grpc.ModelServiceStub(channel)
        encode: Any = encode_pb2_grpc.EncodeServiceStub(channel)

        async def answered_by(**pins: str) -> tuple[str, str]:
            item = types_pb2.EncodeItem(text="a cat")
            answer = await encode.Encode(encode_pb2.EncodeRequest(items=[item], **pins))
            encoder = server.loader.encoders[answer.version]
            expected = encoder.vector(encoder.prepare_text("a cat"))
            got = np.frombuffer(answer.vectors.data, "<f4")
            np.testing.assert_allclose(got, expected, atol=1e-6)
            assert answer.space_id == encoder.spec.space_id
            return answer.model, answer.version

        default = (await models.GetModel(model_pb2.GetModelRequest())).live_version
        one, two = [await load(models, f"fake:{seed}", model="shop") for seed in "xy"]
        for version in (one, two):
            activate = model_pb2.ActivateVersionRequest(model="shop", version=version.id)
            await models.ActivateVersion(activate)
        assert await answered_by() == ("default", default)
        assert await answered_by(model="shop") == ("shop", two.id)
        assert await answered_by(version=one.id) == ("shop", one.id)
        assert await answered_by(model="shop", expected_space_id=one.space_id) == ("shop", one.id)
        await models.Rollback(model_pb2.RollbackRequest(model="shop"))
        assert await answered_by(model="shop") == ("shop", one.id)
        assert await answered_by() == ("default", default)
        # A space of another model is none of this one's, and no model takes another's version.
        item = types_pb2.EncodeItem(text="a cat")
        foreign = encode_pb2.EncodeRequest(items=[item], expected_space_id=one.space_id)
        assert await refused(encode.Encode(foreign)) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "SPACE_MISMATCH",
        )
        stolen = model_pb2.ActivateVersionRequest(model="default", version=one.id)
        assert await refused(models.ActivateVersion(stolen)) == (
            grpc.StatusCode.NOT_FOUND,
            "VERSION_NOT_FOUND",
        )
        listed = await models.ListModels(model_pb2.ListModelsRequest())
        assert [model.name for model in listed.models] == ["default", "shop"]


async def test_a_rollback_target_that_is_given_up_can_be_deleted() -> None:
    """Also if a collection was kept up for the rollback: it gets no more writes for it."""
    async with running_server() as server, AsyncClient(server.address) as client:
        old = (await client.create_collection("c")).version
        await client.upsert("c", [("p", "a text")])
        new = (await client.load_version("fake:new")).id
        await (await client.reindex("c", new)).wait(60)
        with pytest.raises(NotFound) as unknown:
            await client.activate(new, collections=["nobody"])
        assert unknown.value.reason == "COLLECTION_NOT_FOUND"
        await client.activate(new, collections=["c"])
        catalogue = server.app.parts.collections.catalogue
        assert set(catalogue.get("c").targets()) == {old, new}
        with pytest.raises(FailedPrecondition, match="rollback"):
            await client.delete_version(old)
        await client.unload_version(old, release_rollback=True)
        assert set(catalogue.get("c").targets()) == {new}
        await client.delete_version(old)
        assert [version.id for version in await client.versions()] == [new]
        await client.upsert("c", [("q", "another text")])
        assert {hit.id for hit in await client.search("c", "a text")} == {"p", "q"}
        with pytest.raises(FailedPrecondition, match="live") as refused:
            await client.delete_version(new)
        assert refused.value.reason == "VERSION_IN_USE"


async def test_a_version_whose_shadow_is_given_up_can_be_deleted() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        live = (await client.create_collection("c")).version
        await client.upsert("c", [("p", "a text")])
        new = (await client.load_version("fake:new")).id
        with pytest.raises(NotFound) as none:
            await client.drop_shadow("c", new)
        assert none.value.reason == "SHADOW_NOT_FOUND"
        with pytest.raises(InvalidArgument) as unnamed:
            await client.drop_shadow("c", "")
        assert [violation.field for violation in unnamed.value.fields] == ["version"]
        faults = server.loader.encoders[new].faults
        faults.delay_s = 0.5
        run = await client.reindex("c", new)
        async with asyncio.timeout(30):
            while not (await client.get_collection("c")).shadow_version:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        with pytest.raises(FailedPrecondition) as grows:
            await client.drop_shadow("c", new)
        assert (grows.value.reason, grows.value.metadata["job"]) == ("SHADOW_GROWS", run.id)
        await run.wait(60)
        with pytest.raises(FailedPrecondition, match="DropShadow"):
            await client.delete_version(new)
        found = await client.drop_shadow("c", new)
        assert (found.version, found.shadow_version, found.points) == (live, "", 1)
        await client.delete_version(new)


async def test_points_whose_sources_are_lost_are_named(tmp_path: Path) -> None:
    config = ServerConfig(port=0, data_dir=tmp_path)
    async with running_server(config) as server, AsyncClient(server.address) as client:
        await client.create_collection("c")
        pictures = [b"\x89PNG" + bytes([number]) * 40_000 for number in range(2)]
        points = [(f"p{n}", Image.from_bytes(data)) for n, data in enumerate(pictures)]
        await client.upsert("c", points)
        for file in (tmp_path / "sources").glob("*/*"):
            if pictures[1][-99:] in file.read_bytes():
                file.unlink()
        with pytest.raises(DataLoss) as lost:
            await client.get_points("c", ["p0", "p1"], sources=True)
        assert (lost.value.reason, lost.value.metadata["ids"]) == ("SOURCE_DAMAGED", '["p1"]')
        with pytest.raises(DataLoss, match="'p1'"):
            [point async for point in client.list_points("c", sources=True)]
        await client.upsert("c", points[1:])
        assert len(await client.get_points("c", ["p0", "p1"], sources=True)) == 2
