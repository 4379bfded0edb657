"""Fetching an artifact over broken connections."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hotclip import _artifacts as parse
from hotclip._aio.connection import Connection
from hotclip._artifacts import Artifact, Download, Progress
from hotclip._deadline import Deadline
from hotclip._message import made
from hotclip.errors import Cancelled, Unavailable
from hotclip_proto.v1 import artifact_pb2


async def get(connection: Connection, artifact: str, deadline: Deadline) -> Artifact:
    """An artifact by id. Raises NotFound."""
    request = made(artifact_pb2.GetArtifactRequest, artifact=artifact)
    return parse.artifact(
        await connection.call(connection.stubs().artifacts.GetArtifact, request, deadline)
    )


async def fetch(
    connection: Connection,
    artifact: str,
    path: Path,
    progress: Progress | None,
    deadline: Deadline,
) -> Path:
    """See Client.download_artifact."""
    download = Download(await get(connection, artifact, deadline), path, progress)
    try:
        whole = await connection.run(download.open)
        if whole is not None:
            return whole
        while True:
            method = connection.stubs().artifacts.Download
            stream = connection.watch(method, download.request(), deadline)
            try:
                async for message in stream:
                    await connection.run(partial(download.accept, message))
                pause = download.finished()
                if pause is None:
                    return await connection.run(download.finish)
            except (Unavailable, Cancelled) as error:
                pause = download.broken(error)
            finally:
                await stream.aclose()
            await connection.sleep(deadline.pause(pause))
    finally:
        download.close()
