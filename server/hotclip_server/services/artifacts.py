"""ArtifactService: the wire side of files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from hotclip_proto.v1 import artifact_pb2, artifact_pb2_grpc
from hotclip_server.artifacts.records import ArtifactFormat, ArtifactRecord
from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.artifacts.uploads import ArtifactUploads, UploadState
from hotclip_server.errors import OutOfRange
from hotclip_server.jobs.store import timestamp
from hotclip_server.services.datasets import newest_first_key
from hotclip_server.services.paging import PageRequest

Context = grpc.aio.ServicerContext[Any, Any]


class ArtifactService(artifact_pb2_grpc.ArtifactServiceServicer):
    """See artifact.proto."""

    def __init__(self, artifacts: ArtifactStore, uploads: ArtifactUploads) -> None:
        self._artifacts = artifacts
        self._uploads = uploads

    async def GetArtifact(  # noqa: N802 - named by the proto
        self, request: artifact_pb2.GetArtifactRequest, context: Context
    ) -> artifact_pb2.Artifact:
        """By id."""
        return artifact_to_proto(await self._artifacts.get(request.artifact))

    async def ListArtifacts(  # noqa: N802 - named by the proto
        self, request: artifact_pb2.ListArtifactsRequest, context: Context
    ) -> artifact_pb2.ListArtifactsResponse:
        """Newest first."""
        page = PageRequest.parse(
            request.page_size,
            request.page_token,
            listing=f"artifacts/{request.version}",
            kinds=(str, str),
        )
        rows = await self._artifacts.list(
            limit=page.size + 1, before=newest_first_key(page), version=request.version
        )
        rows, token = page.cut(rows, key=lambda row: (row.create_time.isoformat(), row.id))
        return artifact_pb2.ListArtifactsResponse(
            artifacts=map(artifact_to_proto, rows), next_page_token=token
        )

    async def DeleteArtifact(  # noqa: N802 - named by the proto
        self, request: artifact_pb2.DeleteArtifactRequest, context: Context
    ) -> artifact_pb2.DeleteArtifactResponse:
        """Removes it."""
        await self._artifacts.delete(request.artifact)
        return artifact_pb2.DeleteArtifactResponse()

    async def Download(  # noqa: N802 - named by the proto
        self, request: artifact_pb2.DownloadRequest, context: Context
    ) -> AsyncIterator[artifact_pb2.DownloadResponse]:
        """From an offset on, verified before the end."""
        record = await self._artifacts.get(request.artifact)
        if request.offset > record.size_bytes:
            raise OutOfRange.field(
                "offset", f"is {request.offset}, the file has {record.size_bytes} bytes"
            )
        chunks = self._artifacts.chunks(record, request.offset)
        while (chunk := await self._artifacts.run(next, chunks, None)) is not None:
            if chunk.data or chunk.sha256:
                yield artifact_pb2.DownloadResponse(
                    data=chunk.data,
                    offset=chunk.offset,
                    total_bytes=record.size_bytes,
                    sha256=chunk.sha256,
                )

    async def GetUpload(  # noqa: N802 - named by the proto
        self, request: artifact_pb2.GetUploadRequest, context: Context
    ) -> artifact_pb2.Upload:
        """Where to go on."""
        return upload_to_proto(await self._artifacts.run(self._uploads.state, request.sha256))

    async def UploadArtifact(  # noqa: N802 - named by the proto
        self, request: artifact_pb2.UploadArtifactRequest, context: Context
    ) -> artifact_pb2.Upload:
        """Takes a part; a caller that goes away leaves the part whole or absent."""
        return upload_to_proto(
            await self._artifacts.run(
                self._uploads.write,
                request.sha256,
                request.total_bytes,
                request.offset,
                request.data,
            )
        )


def upload_to_proto(state: UploadState) -> artifact_pb2.Upload:
    """As the wire has it."""
    made = None if state.artifact is None else artifact_to_proto(state.artifact)
    return artifact_pb2.Upload(offset=state.offset, artifact=made)


def artifact_to_proto(record: ArtifactRecord) -> artifact_pb2.Artifact:
    """As the wire has it."""
    return artifact_pb2.Artifact(
        id=record.id,
        format=_FORMATS[record.format],
        version=record.origin.version,
        base_version=record.origin.base_version,
        model=record.origin.model,
        size_bytes=record.size_bytes,
        sha256=record.sha256,
        create_time=timestamp(record.create_time),
        file_name=record.file_name,
    )


_FORMATS = {
    ArtifactFormat.OPEN_CLIP: artifact_pb2.ARTIFACT_FORMAT_OPEN_CLIP,
    ArtifactFormat.ONNX: artifact_pb2.ARTIFACT_FORMAT_ONNX,
    ArtifactFormat.DELTA: artifact_pb2.ARTIFACT_FORMAT_DELTA,
}
