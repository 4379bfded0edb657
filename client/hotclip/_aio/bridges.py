"""Collections and other versions: reindexing, bridges; methods of AsyncClient."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hotclip import _bridge as parse
from hotclip import _collections as collections
from hotclip import _jobs
from hotclip._aio.jobs import AsyncRun
from hotclip._bridge import Bridge
from hotclip._collections import Collection
from hotclip._message import made
from hotclip_proto.v1 import drift_pb2, search_pb2

if TYPE_CHECKING:
    from hotclip._aio.client import AsyncClient


async def reindex(
    self: AsyncClient,
    collection: str,
    version: str,
    *,
    name: str = "",
    request_id: str = "",
    timeout: float | None = None,
) -> AsyncRun:
    """Starts building a collection's vectors anew for a version, beside the old ones.

    When the job has ended, activate puts version and vectors live together. A collection of
    whose vectors the version changes none, e.g. of images when clip-vision was locked, needs
    none of this: activate takes it along as it is. Points that were given as vectors have no
    source to be encoded from: list_points finds them, and upsert takes what they were made of
    (`missing_sources`, `only_missing_sources`).

    Args:
        collection: Its name.
        version: Staged or stored version to build for.
        name: Unique among jobs; empty: the id.
        request_id: The same id again within a day gives the same job; empty: a new one is made.
        timeout: Seconds for starting; None: the client's default.

    Raises:
        NotFound: No such collection or version.
        FailedPrecondition: Sources were not kept (reason SOURCES_MISSING; `.metadata`: how many
            `points`, and `ids` of the first ones as a JSON list).
    """
    connection = self._connection
    request = made(
        search_pb2.ReindexRequest,
        collection=collection,
        version=version,
        name=name,
        request_id=request_id or uuid.uuid4().hex,
    )
    stub = connection.stubs().search
    started = await connection.call(stub.Reindex, request, connection.deadline(timeout))
    return AsyncRun(connection, _jobs.job(started))


async def drop_shadow(
    self: AsyncClient, collection: str, version: str, *, timeout: float | None = None
) -> Collection:
    """Gives up a shadow whose version is not to go live after all.

    While it is there every point is encoded twice, points can't be given as vectors, and the
    version stays in memory. reindex makes it anew.

    Args:
        collection: Its name.
        version: Version that the shadow is for.
        timeout: Seconds; None: the client's default.

    Returns:
        The collection as it is then.

    Raises:
        NotFound: No such collection, or it has no shadow for that version (reason
            SHADOW_NOT_FOUND).
        FailedPrecondition: A job still builds it (reason SHADOW_GROWS; `.metadata`: its id as
            `job`): Run.cancel ends that, and no shadow stays.
    """
    connection = self._connection
    request = made(search_pb2.DropShadowRequest, collection=collection, version=version)
    stub = connection.stubs().search
    reply = await connection.call(stub.DropShadow, request, connection.deadline(timeout))
    return collections.collection(reply)


async def fit_bridge(
    self: AsyncClient,
    collection: str,
    version: str,
    *,
    texts: Sequence[str] = (),
    sample: int | None = None,
    k: int | None = None,
    seed: int = 0,
    name: str = "",
    request_id: str = "",
    timeout: float | None = None,
) -> AsyncRun:
    """Starts fitting a map from a collection's vectors to the space of a version.

    When the job has ended, search(..., bridge=True) searches the collection approximately with
    that version, until it is reindexed; get_bridge says how approximately.

    Args:
        collection: Its name.
        version: Version whose space is bridged to.
        texts: Texts to measure with besides the recorded queries of the collection.
        sample: Points that are encoded, 64 to 10,000; None: 4,000.
        k: Length of the lists whose recall is measured, 1 to 100; None: 10.
        seed: Which sample is drawn.
        name: Of the job, unique; empty: the id.
        request_id: The same id again within a day gives the same job; empty: a new one is made.
        timeout: Seconds for starting; None: the client's default.

    Raises:
        NotFound: No such collection or version.
        FailedPrecondition: The collection is bound to the version (reason ALREADY_BOUND).
    """
    connection = self._connection
    request = made(
        drift_pb2.FitBridgeRequest,
        collection=collection,
        version=version,
        texts=texts,
        sample=sample,
        k=k,
        seed=seed,
        name=name,
        request_id=request_id or uuid.uuid4().hex,
    )
    stub = connection.stubs().drift
    started = await connection.call(stub.FitBridge, request, connection.deadline(timeout))
    return AsyncRun(connection, _jobs.job(started))


async def get_bridge(self: AsyncClient, collection: str, *, timeout: float | None = None) -> Bridge:
    """The bridge of a collection. Raises NotFound if it has none."""
    connection = self._connection
    request = made(drift_pb2.GetBridgeRequest, collection=collection)
    stub = connection.stubs().drift
    return parse.bridge(
        await connection.call(stub.GetBridge, request, connection.deadline(timeout))
    )


async def delete_bridge(
    self: AsyncClient, collection: str, *, timeout: float | None = None
) -> None:
    """Removes the bridge of a collection. Raises NotFound if it has none."""
    connection = self._connection
    request = made(drift_pb2.DeleteBridgeRequest, collection=collection)
    stub = connection.stubs().drift
    await connection.call(stub.DeleteBridge, request, connection.deadline(timeout))
