"""Models, versions and swapping them; methods of AsyncClient."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hotclip import _models as parse
from hotclip._message import made
from hotclip._models import Architecture, Backbone, Gate, Model, Version
from hotclip._reconnect import Attempts
from hotclip.errors import Cancelled, Unavailable
from hotclip_proto.v1 import model_pb2

if TYPE_CHECKING:
    from hotclip._aio.client import AsyncClient

# Seconds: loading and warming a version takes longer than other calls.
_LOADING_S = 600.0


async def models(self: AsyncClient, *, timeout: float | None = None) -> list[Model]:
    """All models of the server."""
    connection, found, token = self._connection, list[Model](), ""
    deadline = connection.deadline(timeout)
    while True:
        request = made(model_pb2.ListModelsRequest, page_token=token)
        reply = await connection.call(connection.stubs().models.ListModels, request, deadline)
        found += map(parse.model, reply.models)
        token = reply.next_page_token
        if not token:
            return found


async def get_model(self: AsyncClient, model: str = "", *, timeout: float | None = None) -> Model:
    """One model; empty: "default". Raises NotFound."""
    connection = self._connection
    request = made(model_pb2.GetModelRequest, model=model)
    stub = connection.stubs().models
    return parse.model(await connection.call(stub.GetModel, request, connection.deadline(timeout)))


async def versions(
    self: AsyncClient, model: str = "", *, timeout: float | None = None
) -> list[Version]:
    """All versions of a model, newest first. Raises NotFound."""
    connection, found, token = self._connection, list[Version](), ""
    deadline = connection.deadline(timeout)
    while True:
        request = made(model_pb2.ListVersionsRequest, model=model, page_token=token)
        reply = await connection.call(connection.stubs().models.ListVersions, request, deadline)
        found += map(parse.version, reply.versions)
        token = reply.next_page_token
        if not token:
            return found


async def get_version(self: AsyncClient, version: str, *, timeout: float | None = None) -> Version:
    """One version by id. Raises NotFound."""
    connection = self._connection
    request = made(model_pb2.GetVersionRequest, version=version)
    stub = connection.stubs().models
    return parse.version(
        await connection.call(stub.GetVersion, request, connection.deadline(timeout))
    )


async def backbones(self: AsyncClient, *, timeout: float | None = None) -> list[Backbone]:
    """Published weights that are a good beginning, described: the built-in ones, then the
    smallest first. What is not listed can be loaded just as well, see architectures."""
    connection = self._connection
    request = made(model_pb2.DescribeArchitecturesRequest, page_size=1)
    stub = connection.stubs().models
    reply = await connection.call(stub.DescribeArchitectures, request, connection.deadline(timeout))
    return list(map(parse.backbone, reply.backbones))


async def architectures(self: AsyncClient, *, timeout: float | None = None) -> list[Architecture]:
    """All that load_version knows by name."""
    connection, found, token = self._connection, list[Architecture](), ""
    deadline = connection.deadline(timeout)
    stub = connection.stubs().models
    while True:
        request = made(model_pb2.DescribeArchitecturesRequest, page_size=1000, page_token=token)
        reply = await connection.call(stub.DescribeArchitectures, request, deadline)
        found += map(parse.architecture, reply.architectures)
        token = reply.next_page_token
        if not token:
            return found


async def load_version(
    self: AsyncClient,
    source: str,
    *,
    model: str = "",
    request_id: str = "",
    timeout: float | None = _LOADING_S,
) -> Version:
    """Loads weights into a new version and stages it: warm, verified, not live.

    Args:
        source: "builtin:mini", "<architecture>::<pretrained tag>", "hf-hub:<org>/<repo>"
            or "local:<name>" below the server's models directory.
        model: Name of the model; empty: "default".
        request_id: The same id again within a day gives the same version; empty: a new one is made.
        timeout: Seconds; None: the client's default.

    Raises:
        InvalidArgument, NotFound: The source.
        FailedPrecondition: The weights are unfit (reason VERSION_UNFIT).
        ResourceExhausted: They do not fit into memory.
        DataLoss: A checksum does not match.
    """
    connection = self._connection
    request = made(
        model_pb2.LoadVersionRequest,
        model=model,
        source=source,
        request_id=request_id or uuid.uuid4().hex,
    )
    stub = connection.stubs().models
    return parse.version(
        await connection.call(stub.LoadVersion, request, connection.deadline(timeout))
    )


async def activate(
    self: AsyncClient,
    version: str,
    *,
    model: str = "",
    etag: str = "",
    validate_only: bool = False,
    collections: Sequence[str] = (),
    gates: Sequence[Gate] = (),
    request_id: str = "",
    timeout: float | None = _LOADING_S,
) -> Model:
    """Makes a version live; every request admitted after this returns is answered by it.

    Args:
        version: Its id; it is staged first if it is not resident.
        model: Name of the model; empty: "default".
        etag: If set, the model must still have it.
        validate_only: Check and stage, change nothing.
        collections: Reindexed collections that go live in the same transaction; empty:
            all that are complete for this version.
        gates: What it must have reached in measurements, each of them, or it does not go live.
        request_id: The same id again within a day changes nothing; empty: a new one is made.
        timeout: Seconds; None: the client's default.

    Raises:
        InvalidArgument: A gate.
        NotFound: No such model, version or dataset of a gate.
        Aborted: The model changed (reason ETAG_MISMATCH).
        FailedPrecondition: The version is unfit (reason VERSION_UNFIT), or a gate was not
            reached (GATE_NOT_REACHED) or never measured (GATE_NOT_MEASURED).
        ResourceExhausted: It does not fit into memory.
    """
    connection = self._connection
    request = made(
        model_pb2.ActivateVersionRequest,
        model=model,
        version=version,
        etag=etag,
        validate_only=validate_only,
        collections=collections,
        gates=map(parse.gate, gates),
        request_id=request_id or uuid.uuid4().hex,
    )
    stub = connection.stubs().models
    return parse.model(
        await connection.call(stub.ActivateVersion, request, connection.deadline(timeout))
    )


async def rollback(
    self: AsyncClient,
    *,
    model: str = "",
    etag: str = "",
    request_id: str = "",
    timeout: float | None = None,
) -> Model:
    """Makes the previous version live again; loads nothing.

    Args:
        model: Name of the model; empty: "default".
        etag: If set, the model must still have it.
        request_id: The same id again within a day changes nothing; empty: a new one is made.
        timeout: Seconds; None: the client's default.

    Raises:
        Aborted: The model changed (reason ETAG_MISMATCH).
        FailedPrecondition: There is no previous version (reason NO_PREVIOUS_VERSION).
    """
    connection = self._connection
    request = made(
        model_pb2.RollbackRequest, model=model, etag=etag, request_id=request_id or uuid.uuid4().hex
    )
    stub = connection.stubs().models
    return parse.model(await connection.call(stub.Rollback, request, connection.deadline(timeout)))


async def unload_version(
    self: AsyncClient, version: str, *, release_rollback: bool = False, timeout: float | None = None
) -> Version:
    """Frees the memory of a version that is not live.

    Args:
        version: Its id.
        release_rollback: It may be the version that rollback returns to; afterwards there is
            none, and collections get no more writes for it.
        timeout: Seconds; None: the client's default.

    Raises NotFound, or FailedPrecondition (reason VERSION_IN_USE).
    """
    connection = self._connection
    request = made(
        model_pb2.UnloadVersionRequest, version=version, release_rollback=release_rollback
    )
    stub = connection.stubs().models
    return parse.version(
        await connection.call(stub.UnloadVersion, request, connection.deadline(timeout))
    )


async def delete_version(self: AsyncClient, version: str, *, timeout: float | None = None) -> None:
    """Removes a version and its files.

    Raises NotFound, or FailedPrecondition (reason VERSION_IN_USE).
    """
    connection = self._connection
    request = made(model_pb2.DeleteVersionRequest, version=version)
    await connection.call(
        connection.stubs().models.DeleteVersion, request, connection.deadline(timeout)
    )


async def merge_versions(
    self: AsyncClient,
    versions: Sequence[str],
    *,
    alpha: float | None = None,
    timeout: float | None = _LOADING_S,
) -> Version:
    """Makes a stored version of the weights of others, without training; activate it if it is
    better.

    Args:
        versions: Ids. With alpha two, the base and what was trained from it; without it 2 to
            64 whose weights are averaged (a soup).
        alpha: Share of the trained weights, in [0, 1] (WiSE-FT): 0 is the base.
        timeout: Seconds; None: the client's default.

    Raises:
        InvalidArgument: Not so many versions, or alpha is not in [0, 1].
        NotFound: No such version.
        FailedPrecondition: Versions of different architectures or models.
    """
    connection = self._connection
    stub = connection.stubs().models
    request = parse.merge_request(versions, alpha)
    deadline = connection.deadline(timeout)
    return parse.version(await connection.call(stub.MergeVersions, request, deadline))


async def watch_models(
    self: AsyncClient, model: str = "", *, after: Mapping[str, int] | None = None
) -> AsyncIterator[Model]:
    """The model (empty: every model) now, then after each change, until closed.

    A broken connection is made again, and what went live meanwhile comes first: no revision is
    left out. Of what changes between two revisions, as staging, the newest comes.

    Args:
        model: Name of the model; empty: all.
        after: The last revision by model that was seen before, e.g. {"default": 7}: those after
            it come first, without their staged versions. Where all models are watched, those that
            it does not name are new: all of their revisions come.
    """
    connection, attempts = self._connection, Attempts()
    seen: dict[str, Model] = {}
    revisions = dict(after or {})
    while True:
        request = made(model_pb2.WatchModelsRequest, model=model, after_revisions=revisions)
        stream = connection.watch(connection.stubs().models.WatchModels, request)
        try:
            async for message in stream:
                attempts.progressed()
                state = parse.model(message)
                if seen.get(state.name) != state:
                    seen[state.name] = state
                    revisions[state.name] = state.revision
                    yield state
            pause = attempts.ended()
        except (Unavailable, Cancelled) as error:
            pause = attempts.pause(error)
        finally:
            await stream.aclose()
        await connection.sleep(pause)
