"""Collections and searching them; methods of AsyncClient."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, overload

from hotclip import _collections as parse
from hotclip._collections import Collection
from hotclip._encoding import OnError
from hotclip._filters import FilterLike, filter_of
from hotclip._message import made
from hotclip._points import PointLike, Upserted, UpsertTally, check_ids, deletions, point_blocks
from hotclip._queries import Hits, QueryLike, SearchPlan
from hotclip._stored import (
    IDS_AT_ONCE,
    SOURCES_AT_ONCE,
    StoredPoint,
    fields_of,
    stored_points,
)
from hotclip.errors import Aborted
from hotclip_proto.v1 import search_pb2

if TYPE_CHECKING:
    from hotclip._aio.client import AsyncClient


async def create_collection(
    self: AsyncClient,
    name: str,
    *,
    model: str = "",
    version: str = "",
    keep_sources: bool = True,
    timeout: float | None = None,
) -> Collection:
    """Makes an empty collection, bound to a version.

    Args:
        name: 1 to 128 of [A-Za-z0-9._-].
        model: Name of the model; empty: "default".
        version: Version to bind; empty: the live one.
        keep_sources: Keep texts and images, so that reindex needs nobody.
        timeout: Seconds; None: the client's default.

    Raises:
        AlreadyExists: The name is taken.
        NotFound: No such model or version.
    """
    connection = self._connection
    request = made(
        search_pb2.CreateCollectionRequest,
        name=name,
        model=model,
        version=version,
        keep_sources=keep_sources,
    )
    stub = connection.stubs().search
    reply = await connection.call(stub.CreateCollection, request, connection.deadline(timeout))
    return parse.collection(reply)


async def get_collection(
    self: AsyncClient, name: str, *, timeout: float | None = None
) -> Collection:
    """A collection by name. Raises NotFound."""
    connection = self._connection
    request = made(search_pb2.GetCollectionRequest, name=name)
    stub = connection.stubs().search
    reply = await connection.call(stub.GetCollection, request, connection.deadline(timeout))
    return parse.collection(reply)


async def list_collections(self: AsyncClient, *, timeout: float | None = None) -> list[Collection]:
    """All collections, by name."""
    connection, found, token = self._connection, list[Collection](), ""
    deadline = connection.deadline(timeout)
    while True:
        request = made(search_pb2.ListCollectionsRequest, page_token=token)
        reply = await connection.call(connection.stubs().search.ListCollections, request, deadline)
        found += map(parse.collection, reply.collections)
        token = reply.next_page_token
        if not token:
            return found


async def delete_collection(self: AsyncClient, name: str, *, timeout: float | None = None) -> None:
    """Removes a collection with its points. Raises NotFound."""
    connection = self._connection
    request = made(search_pb2.DeleteCollectionRequest, name=name)
    stub = connection.stubs().search
    await connection.call(stub.DeleteCollection, request, connection.deadline(timeout))


async def upsert(
    self: AsyncClient,
    collection: str,
    points: Iterable[PointLike],
    *,
    on_error: OnError = "raise",
    only_missing_sources: bool = False,
    timeout: float | None = None,
) -> Upserted:
    """Encodes and stores points; durable when it returns. Points of the same id are replaced.

    Args:
        collection: Its name.
        points: Point objects or (id, content[, payload]) tuples; content is an item of
            encode, a Vector, or one row of Embeddings. Long lists are sent in parts.
        on_error: "raise" raises ItemsFailed if a point is bad, after all the others were
            stored; "return" lists them in `.errors`.
        only_missing_sources: Only give texts or images to points that were given as vectors, so
            that the collection can be reindexed: they keep payload and reference, and points
            that have a source or are gone are left alone and not counted.
        timeout: Seconds for all points; None: the client's default.

    Raises:
        ItemsFailed: Bad points, each named; the others are stored.
        NotFound: No such collection.
        SpaceMismatch: A vector is of another space.
        FailedPrecondition: Sources for a collection that keeps none (reason SOURCES_NOT_KEPT).
    """
    connection = self._connection
    deadline = connection.deadline(timeout)
    tally = UpsertTally(on_error)
    limits = await connection.limits(deadline)
    async for block in connection.pull(point_blocks(points, limits), blocking=True):
        if not block.points:
            tally.add(block, search_pb2.UpsertResponse())
            continue
        request = made(
            search_pb2.UpsertRequest,
            collection=collection,
            points=block.points,
            only_missing_sources=only_missing_sources,
        )
        stub = connection.stubs().search
        reply = await connection.call(stub.Upsert, request, deadline)
        tally.add(block, reply)
    return tally.result()


async def delete_points(
    self: AsyncClient,
    collection: str,
    ids: Sequence[str] = (),
    *,
    filter: FilterLike | None = None,  # noqa: A002 - the word that searches use
    timeout: float | None = None,
) -> int:
    """Removes points by id, or those that match. Gives how many were removed.

    Args:
        collection: Its name.
        ids: Unknown ones are ignored.
        filter: Without ids: the points that match when the server looks at them.
        timeout: Seconds for all points; None: the client's default.

    Raises:
        NotFound: No such collection.
        InvalidArgument: The filter, or one that has no condition.
    """
    connection, deleted = self._connection, 0
    deadline = connection.deadline(timeout)
    for request in deletions(collection, ids, filter_of(filter)):
        reply = await connection.call(connection.stubs().search.Delete, request, deadline)
        deleted += reply.deleted
    return deleted


async def get_points(
    self: AsyncClient,
    collection: str,
    ids: Sequence[str],
    *,
    vectors: bool = False,
    sources: bool = False,
    timeout: float | None = None,
) -> list[StoredPoint]:
    """Points by id, in that order; unknown ids are left out.

    Args:
        collection: Its name.
        ids: Of any number; long lists are asked for in parts.
        vectors: Whether their vectors are wanted.
        sources: Whether the texts and images are wanted that they were made of, if kept.
        timeout: Seconds for all points; None: the client's default.

    Raises:
        NotFound: No such collection.
        ResourceExhausted: The answer is too large (reason ANSWER_TOO_LARGE): ask for fewer.
        DataLoss: Sources are lost (reason SOURCE_DAMAGED; `.metadata`: `ids` of their points as
            a JSON list): delete these points, or upsert them anew.
    """
    check_ids(ids)
    connection, found = self._connection, list[StoredPoint]()
    deadline = connection.deadline(timeout)
    at_once = SOURCES_AT_ONCE if sources else IDS_AT_ONCE
    for start in range(0, len(ids), at_once):
        request = made(
            search_pb2.GetPointsRequest,
            collection=collection,
            ids=ids[start : start + at_once],
            fields=fields_of(vectors=vectors, sources=sources),
        )
        reply = await connection.call(connection.stubs().search.GetPoints, request, deadline)
        found += stored_points(reply.points)
    return found


async def list_points(
    self: AsyncClient,
    collection: str,
    *,
    filter: FilterLike | None = None,  # noqa: A002 - the word that searches use
    vectors: bool = False,
    sources: bool = False,
    missing_sources: bool = False,
    page_size: int = 0,
    timeout: float | None = None,
) -> AsyncIterator[StoredPoint]:
    """Every point that matches, a page at a time; a point that stays is given once.

    Args:
        collection: Its name.
        filter: Only points that match; a mapping means equality of each key.
        vectors: Whether their vectors are wanted.
        sources: Whether the texts and images are wanted that they were made of, if kept.
        missing_sources: Only points without their source: see upsert.
        page_size: Points of a page, at most 1,000; 0: the server's default.
        timeout: Seconds for each page; None: the client's default.

    Yields:
        StoredPoint, in an order that does not change.

    Raises:
        NotFound: No such collection.
        InvalidArgument: The filter or the page size.
    """
    connection, token = self._connection, ""
    conditions = filter_of(filter)
    while True:
        request = made(
            search_pb2.ListPointsRequest,
            collection=collection,
            filter=conditions,
            page_size=page_size,
            page_token=token,
            missing_sources=missing_sources,
            fields=fields_of(vectors=vectors, sources=sources),
        )
        stub = connection.stubs().search
        reply = await connection.call(stub.ListPoints, request, connection.deadline(timeout))
        for point in stored_points(reply.points):
            yield point
        token = reply.next_page_token
        if not token:
            return


async def count_points(
    self: AsyncClient,
    collection: str,
    *,
    filter: FilterLike | None = None,  # noqa: A002 - the word that searches use
    timeout: float | None = None,
) -> int:
    """How many points match.

    Args:
        collection: Its name.
        filter: Only points that match; None: all.
        timeout: Seconds; None: the client's default.

    Raises:
        NotFound: No such collection.
        InvalidArgument: The filter.
    """
    connection = self._connection
    request = made(search_pb2.CountPointsRequest, collection=collection, filter=filter_of(filter))
    stub = connection.stubs().search
    reply = await connection.call(stub.CountPoints, request, connection.deadline(timeout))
    return reply.points


@overload
async def search(  # type: ignore[overload-overlap]  # a str is one query, though it is a sequence
    self: AsyncClient,
    collection: str,
    query: QueryLike,
    *,
    limit: int = 10,
    filter: FilterLike | None = None,
    score_threshold: float | None = None,
    exact: bool = False,
    expected_space_id: str = "",
    bridge: bool = False,
    timeout: float | None = None,
) -> Hits: ...
@overload
async def search(
    self: AsyncClient,
    collection: str,
    query: Sequence[QueryLike],
    *,
    limit: int = 10,
    filter: FilterLike | None = None,
    score_threshold: float | None = None,
    exact: bool = False,
    expected_space_id: str = "",
    bridge: bool = False,
    timeout: float | None = None,
) -> list[Hits]: ...
async def search(
    self: AsyncClient,
    collection: str,
    query: QueryLike | Sequence[QueryLike],
    *,
    limit: int = 10,
    filter: FilterLike | None = None,  # noqa: A002 - the word that searches use
    score_threshold: float | None = None,
    exact: bool = False,
    expected_space_id: str = "",
    bridge: bool = False,
    timeout: float | None = None,
) -> Hits | list[Hits]:
    """The points most like a query, best first.

    Args:
        collection: Its name.
        query: An item of encode (a str is a text), a Vector, one row of Embeddings, a PointId,
            or Combined of several; or a list of these. Text and image queries are encoded by
            the version that the collection is bound to.
        limit: Hits a query, 1 to 1,000.
        filter: Only points that match; a mapping means equality of each key.
        score_threshold: Only hits of at least this cosine.
        exact: Compare with every vector instead of the approximate index.
        expected_space_id: If set, the answer must be of this space: by the bound version, or by
            another that is resident and whose vectors of the collection are kept.
        bridge: Search with the version of the collection's bridge, approximately; see fit_bridge.
            `.bridge` of the hits says how approximately; None: they are exact.
        timeout: Seconds; None: the client's default.

    Returns:
        Hits for one query, a list of Hits for a list.

    Raises:
        NotFound: No such collection or point.
        SpaceMismatch: A vector is of another space, or the collection is.
        InvalidArgument: Query, limit or filter.
    """
    connection = self._connection
    deadline = connection.deadline(timeout)
    plan = SearchPlan(
        collection,
        query,
        limit=limit,
        conditions=filter_of(filter),
        score_threshold=score_threshold,
        exact=exact,
        expected_space_id=expected_space_id,
        bridge=bridge,
    )
    limits = await connection.limits(deadline)
    while True:
        try:
            async for request in connection.pull(plan.requests(limits), blocking=plan.reads):
                reply = await connection.call(connection.stubs().search.Search, request, deadline)
                plan.add(reply)
            return plan.result()
        except Aborted as error:
            plan.restart(error)
