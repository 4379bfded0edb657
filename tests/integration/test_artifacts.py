"""Artifacts over gRPC: downloads that break and go on, damage, pages."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from support.flaky import FlakyProxy

from hotclip import AsyncClient, Client
from hotclip.errors import AlreadyExists, DataLoss, HotclipError, NotFound, OutOfRange
from hotclip_proto.v1 import artifact_pb2, model_pb2
from hotclip_server.artifacts.records import ArtifactFormat, ArtifactRecord, Origin
from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.testing import RunningServer, running_server

CONTENT = bytes(range(251)) * 12_000  # 3 MB


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


async def stored(server: RunningServer, content: bytes = CONTENT, name: str = "v1") -> str:
    def add(store: ArtifactStore) -> ArtifactRecord:
        with store.scratch() as folder:
            (folder / "a.tar").write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            return store.add(
                folder / "a.tar", digest, ArtifactFormat.OPEN_CLIP, Origin(version=name)
            )

    return (await asyncio.to_thread(add, server.app.parts.artifacts)).id


async def test_a_download_goes_on_over_broken_connections(tmp_path: Path) -> None:
    async with running_server() as server:
        made = await stored(server)
        told: list[tuple[int, int]] = []

        def download(address: str) -> Path:
            with Client(address) as client:
                return client.download_artifact(
                    made, tmp_path / "a.tar", progress=lambda *state: told.append(state)
                )

        with FlakyProxy(server.address, [900_000, 0, 700_000]) as proxy:
            path = await asyncio.to_thread(download, proxy.address)
            assert proxy.cut == 3
        assert path.read_bytes() == CONTENT
        assert names(tmp_path) == ["a.tar"]
        assert told == sorted(told)  # nothing came twice
        assert told[-1] == (len(CONTENT), len(CONTENT))
        assert await asyncio.to_thread(download, server.address) == path  # it is there already


async def test_what_another_process_left_is_gone_on_with(tmp_path: Path) -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        made = await stored(server)
        seen: list[int] = []

        class StoppedError(Exception):
            pass

        def stop(done: int, _: int) -> None:
            seen.append(done)
            if len(seen) == 4:
                raise StoppedError

        with pytest.raises(StoppedError):
            await client.download_artifact(made, tmp_path, progress=stop)
        part = tmp_path / f"hotclip-v1.tar.{made}.part"
        assert names(tmp_path) == [part.name]
        assert part.stat().st_size == seen[-1]
        path = await client.download_artifact(made, tmp_path, progress=lambda d, _: seen.append(d))
        assert seen == sorted(set(seen))
        assert path == tmp_path / "hotclip-v1.tar"
        assert path.read_bytes() == CONTENT
        other = await stored(server, b"other", "v2")
        with pytest.raises(AlreadyExists):
            await client.download_artifact(other, path)


async def test_a_damaged_part_is_begun_anew(tmp_path: Path) -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        made = await stored(server)
        part = tmp_path / f"a.tar.{made}.part"
        part.write_bytes(b"x" * 1000)
        with pytest.raises(DataLoss):
            await client.download_artifact(made, tmp_path / "a.tar")
        assert not part.exists()
        path = await client.download_artifact(made, tmp_path / "a.tar")
        assert path.read_bytes() == CONTENT


async def test_damage_on_the_server_is_told(tmp_path: Path) -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        made = await stored(server)
        file = server.app.parts.artifacts.path(await server.app.parts.artifacts.get(made))
        file.write_bytes(CONTENT[:-1] + b"x")
        with pytest.raises(DataLoss) as caught:
            await client.download_artifact(made, tmp_path / "a.tar")
        assert caught.value.reason == "ARTIFACT_DAMAGED"
        assert not (tmp_path / "a.tar").exists()


async def test_artifacts_are_listed_and_deleted() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        made = [await stored(server, f"{i}".encode(), f"v{i % 2}") for i in range(5)]
        listed = await client.list_artifacts()
        assert [artifact.id for artifact in listed] == made[::-1]
        assert [a.id for a in await client.list_artifacts("v1")] == [made[3], made[1]]
        stubs = client._connection.stubs().artifacts
        first = await stubs.ListArtifacts(artifact_pb2.ListArtifactsRequest(page_size=3))
        rest = await stubs.ListArtifacts(
            artifact_pb2.ListArtifactsRequest(page_size=3, page_token=first.next_page_token)
        )
        assert [a.id for a in (*first.artifacts, *rest.artifacts)] == made[::-1]
        await client.delete_artifact(made[0])
        for call in (client.get_artifact(made[0]), client.delete_artifact(made[0])):
            with pytest.raises(NotFound):
                await call
        beyond = artifact_pb2.DownloadRequest(artifact=made[1], offset=2)
        with pytest.raises(OutOfRange):
            async for _ in client._connection.watch(stubs.Download, beyond):
                pass


async def test_a_bad_export_is_named() -> None:
    async with running_server() as server, AsyncClient(server.address) as client:
        stub = client._connection.stubs().models
        bad = model_pb2.ExportRequest(format=9, name="no spaces here", base_version="v")  # type: ignore[arg-type]  # no such number
        with pytest.raises(HotclipError) as caught:
            await client._connection.call(stub.Export, bad, client._connection.deadline(10))
        assert [v.field for v in caught.value.fields] == ["name", "format", "base_version"]
        with pytest.raises(NotFound):
            await client.export("nothing")
        with pytest.raises(HotclipError) as caught:
            await client.export(format="delta")
        assert caught.value.fields[0].field == "base_version"
