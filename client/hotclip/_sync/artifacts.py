"""Models as files, out of the server and into it; methods of Client."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hotclip import _artifacts as parse
from hotclip import _jobs
from hotclip._artifacts import Artifact, FormatName, Progress, format_of
from hotclip._message import made
from hotclip._parcel import Parcel
from hotclip._sync import downloads, uploads
from hotclip._sync.jobs import Run
from hotclip_proto.v1 import artifact_pb2, model_pb2

if TYPE_CHECKING:
    from hotclip._sync.client import Client

# Seconds: a file may be large.
_TRANSFER_S = 3600.0


def export(
    self: Client,
    version: str = "",
    *,
    format: FormatName = "open_clip",  # noqa: A002  # named by the API
    model: str = "",
    base_version: str = "",
    name: str = "",
    request_id: str = "",
    timeout: float | None = None,
) -> Run:
    """Starts writing a version as a file; `run.wait().artifacts` names it.

    Args:
        version: Version id; empty: the live one of `model`.
        format: "open_clip" (a folder that `open_clip.create_model("local-dir:...")` loads),
            "onnx" (the same with both towers as ONNX graphs) or "delta" (only what differs
            from another version).
        model: Name of the model; empty: "default".
        base_version: Of a delta: what it will be applied to; empty: the version's parent.
        name: Unique among jobs; empty: the id.
        request_id: The same id again within a day gives the same job; empty: a new one is made.
        timeout: Seconds for starting; None: the client's default.

    Raises:
        NotFound: No such version.
        InvalidArgument: Each bad field named.
    """
    request = made(
        model_pb2.ExportRequest,
        version=version,
        format=format_of(format),
        model=model,
        base_version=base_version,
        name=name,
        request_id=request_id or uuid.uuid4().hex,
    )
    connection = self._connection
    stub = connection.stubs().models
    started = connection.call(stub.Export, request, connection.deadline(timeout))
    return Run(connection, _jobs.job(started))


def get_artifact(self: Client, artifact: str, *, timeout: float | None = None) -> Artifact:
    """An artifact by id. Raises NotFound."""
    connection = self._connection
    return downloads.get(connection, artifact, connection.deadline(timeout))


def list_artifacts(
    self: Client, version: str = "", *, timeout: float | None = None
) -> list[Artifact]:
    """All artifacts, or those of a version, newest first."""
    connection, found, token = self._connection, list[Artifact](), ""
    deadline = connection.deadline(timeout)
    while True:
        request = made(artifact_pb2.ListArtifactsRequest, version=version, page_token=token)
        reply = connection.call(connection.stubs().artifacts.ListArtifacts, request, deadline)
        found += map(parse.artifact, reply.artifacts)
        token = reply.next_page_token
        if not token:
            return found


def delete_artifact(self: Client, artifact: str, *, timeout: float | None = None) -> None:
    """Removes an artifact. Raises NotFound, or FailedPrecondition (reason ARTIFACT_IN_USE)."""
    connection = self._connection
    request = made(artifact_pb2.DeleteArtifactRequest, artifact=artifact)
    stub = connection.stubs().artifacts
    connection.call(stub.DeleteArtifact, request, connection.deadline(timeout))


def download_artifact(
    self: Client,
    artifact: str,
    path: Path | str,
    *,
    progress: Progress | None = None,
    timeout: float | None = _TRANSFER_S,
) -> Path:
    """Writes an artifact to the disk; goes on where a broken connection or a process that ended
    has left off, and verifies the whole file before it gets its name.

    Args:
        artifact: Its id.
        path: The file, or an existing folder for a file of the artifact's own name.
        progress: Told how many bytes of how many are there.
        timeout: Seconds; None: the client's default.

    Returns:
        The path of the file.

    Raises:
        NotFound: No such artifact.
        AlreadyExists: The file is there and holds something else.
        DataLoss: It is damaged, on the server or on the way.
    """
    connection = self._connection
    deadline = connection.deadline(timeout)
    return downloads.fetch(connection, artifact, Path(path), progress, deadline)


def import_version(
    self: Client,
    path: Path | str,
    *,
    model: str = "",
    name: str = "",
    request_id: str = "",
    progress: Progress | None = None,
    timeout: float | None = _TRANSFER_S,
) -> Run:
    """Uploads a model and starts making a version of it; `run.wait().result_version` names it.

    What the server has of it already, also from an attempt that broke off, is not sent again.
    The version is stored, staged and verified, but not live.

    Args:
        path: A folder that open_clip's "local-dir:" loads, or an archive that
            download_artifact wrote: of a whole model, or of the difference to a version that
            the server has. Only safetensors are taken as weights.
        model: Name of the model; empty: "default".
        name: Unique among jobs; empty: the id.
        request_id: The same id again within a day gives the same job; empty: a new one is made.
        progress: Told how many bytes of how many the server has.
        timeout: Seconds for the upload; None: the client's default.

    Raises:
        InvalidArgument: Not such a folder or archive.
        ResourceExhausted: It is too large for the server or its disk.
    """
    connection = self._connection
    deadline = connection.deadline(timeout)
    parcel = connection.run(partial(Parcel, Path(path)))
    sent = uploads.send(connection, parcel, progress, deadline)
    request = made(
        model_pb2.ImportVersionRequest,
        model=model,
        artifact=sent.id,
        name=name,
        request_id=request_id or uuid.uuid4().hex,
    )
    stub = connection.stubs().models
    started = connection.call(stub.ImportVersion, request, deadline)
    return Run(connection, _jobs.job(started))
