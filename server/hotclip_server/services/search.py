"""hotclip.v1.SearchService."""

from __future__ import annotations

import asyncio
import hashlib
import math
from contextlib import suppress
from typing import Any
from uuid import UUID

import grpc

from hotclip_proto.v1 import job_pb2, search_pb2, search_pb2_grpc
from hotclip_server.drift.bridged import BridgedSearcher
from hotclip_server.errors import FieldViolation, InvalidArgument, NotFound, ResourceExhausted
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.search.collections import Collections
from hotclip_server.search.filters import filter_from_proto
from hotclip_server.search.payloads import write_payload
from hotclip_server.search.protocol import ShardInfo
from hotclip_server.search.records import CollectionRecord
from hotclip_server.search.searcher import DEFAULT_LIMIT, Found, SearchOptions
from hotclip_server.services.bridging import with_current
from hotclip_server.services.datasets import name_violations, request_id_violations
from hotclip_server.services.encode import deadline_of
from hotclip_server.services.jobs import job_to_proto
from hotclip_server.services.paging import PageRequest, invalid_token
from hotclip_server.services.points import fields_from_proto, got_to_proto, listed_to_proto
from hotclip_server.services.vectors import item_errors

Context = grpc.aio.ServicerContext[Any, Any]

MAX_DELETED_IDS = 10_000
_FEW_HITS = 128
_FEW_VALUES = 2000
"""Of payloads: an answer with more takes milliseconds to build."""


class SearchService(search_pb2_grpc.SearchServiceServicer):
    """Stored vectors; see search.proto.

    Args:
        collections: Does the work.
        jobs: Runs reindexing.
        bridged: Searches over bridges.
        max_items: Points of one Upsert.
    """

    def __init__(
        self,
        collections: Collections,
        jobs: JobRunner,
        bridged: BridgedSearcher,
        max_items: int = 1024,
    ) -> None:
        self._collections = collections
        self._bridged = bridged
        self._jobs = jobs
        self._max_items = max_items

    async def CreateCollection(  # noqa: N802 - named by the proto
        self, request: search_pb2.CreateCollectionRequest, context: Context
    ) -> search_pb2.Collection:
        """Makes an empty one."""
        keep = request.keep_sources if request.HasField("keep_sources") else True
        record = await self._collections.catalogue.create(
            request.name, model=request.model, version=request.version, keep_sources=keep
        )
        return collection_to_proto(record, await self._collections.reader.info(record.name))

    async def GetCollection(  # noqa: N802 - named by the proto
        self, request: search_pb2.GetCollectionRequest, context: Context
    ) -> search_pb2.Collection:
        """One, by name."""
        figures = await self._collections.reader.info(request.name)
        return collection_to_proto(self._collections.catalogue.get(request.name), figures)

    async def ListCollections(  # noqa: N802 - named by the proto
        self, request: search_pb2.ListCollectionsRequest, context: Context
    ) -> search_pb2.ListCollectionsResponse:
        """By name."""
        page = PageRequest.parse(request.page_size, request.page_token, listing="collections")
        rows, token = page.select(self._collections.catalogue.list(), key=lambda r: (r.name,))
        found = []
        for row in rows:
            with suppress(NotFound):  # Deleted meanwhile.
                figures = await self._collections.reader.info(row.name)
                found.append(collection_to_proto(row, figures))
        return search_pb2.ListCollectionsResponse(collections=found, next_page_token=token)

    async def DeleteCollection(  # noqa: N802 - named by the proto
        self, request: search_pb2.DeleteCollectionRequest, context: Context
    ) -> search_pb2.DeleteCollectionResponse:
        """Removes one with its points."""
        await self._collections.delete(request.name)
        return search_pb2.DeleteCollectionResponse()

    async def Upsert(  # noqa: N802 - named by the proto
        self, request: search_pb2.UpsertRequest, context: Context
    ) -> search_pb2.UpsertResponse:
        """Encodes and stores."""
        _check_count("points", len(request.points), self._max_items, "TOO_MANY_ITEMS")
        done = await self._collections.writer.upsert(
            request.collection,
            request.points,
            only_missing_sources=request.only_missing_sources,
            deadline=deadline_of(context),
        )
        return search_pb2.UpsertResponse(
            upserted=done.stored,
            errors=item_errors(done.errors),
            version=done.version,
            space_id=done.space_id,
            text_encoder_id=done.text_encoder_id,
            vision_encoder_id=done.vision_encoder_id,
        )

    async def Delete(  # noqa: N802 - named by the proto
        self, request: search_pb2.DeleteRequest, context: Context
    ) -> search_pb2.DeleteResponse:
        """Removes points."""
        matching = filter_from_proto(request.filter)
        if matching is None:
            _check_count("ids", len(request.ids), MAX_DELETED_IDS, "TOO_MANY_IDS")
            deleted = await self._collections.writer.delete(request.collection, request.ids)
        elif request.ids:
            raise InvalidArgument.field("filter", "goes without ids")
        else:
            deleted = await self._collections.delete_matching(request.collection, matching)
        return search_pb2.DeleteResponse(deleted=deleted)

    async def GetPoints(  # noqa: N802 - named by the proto
        self, request: search_pb2.GetPointsRequest, context: Context
    ) -> search_pb2.GetPointsResponse:
        """By id."""
        async with self._collections.naming_damage(request.collection):
            found = await self._collections.reader.get(
                request.collection, request.ids, fields_from_proto(request.fields)
            )
        return await asyncio.to_thread(got_to_proto, found)

    async def ListPoints(  # noqa: N802 - named by the proto
        self, request: search_pb2.ListPointsRequest, context: Context
    ) -> search_pb2.ListPointsResponse:
        """A page, in the order of the store."""
        told = request.filter.SerializeToString(deterministic=True).hex()
        listing = f"points/{request.collection}/{told}/{request.missing_sources}"
        page = PageRequest.parse(request.page_size, request.page_token, listing=listing)
        async with self._collections.naming_damage(request.collection):
            found = await self._collections.reader.page(
                request.collection,
                after=_cursor(page),
                limit=page.size,
                payload_filter=filter_from_proto(request.filter),
                fields=fields_from_proto(request.fields),
                missing_sources=request.missing_sources,
            )
        token = page.going_on_at((found.following,)) if found.following else ""
        return await asyncio.to_thread(listed_to_proto, found, token)

    async def CountPoints(  # noqa: N802 - named by the proto
        self, request: search_pb2.CountPointsRequest, context: Context
    ) -> search_pb2.CountPointsResponse:
        """Those that match."""
        points = await self._collections.reader.count(
            request.collection, filter_from_proto(request.filter)
        )
        return search_pb2.CountPointsResponse(points=points)

    async def Search(  # noqa: N802 - named by the proto
        self, request: search_pb2.SearchRequest, context: Context
    ) -> search_pb2.SearchResponse:
        """Nearest points of each query."""
        search = self._bridged.search if request.bridge else self._collections.searcher.search
        options = _options(request, deadline_of(context))
        found = await search(request.collection, request.queries, options)
        if is_small(found):
            return found_to_proto(found)
        # Building the message must not hold up the loop.
        return await asyncio.to_thread(found_to_proto, found)

    async def Reindex(  # noqa: N802 - named by the proto
        self, request: search_pb2.ReindexRequest, context: Context
    ) -> job_pb2.Job:
        """Queues a job that builds a shadow."""
        _check_reindex(request)
        print_ = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        kind = JobKind.REINDEX
        job = await self._jobs.requested(kind, request.request_id, print_)
        if job is None:
            record = await self._collections.reindexer.check(request.collection, request.version)
            job = await self._jobs.submit(
                NewJob(
                    kind=kind,
                    spec={"collection": record.name, "version": request.version},
                    name=request.name,
                    model=record.model,
                    request_id=request.request_id,
                    fingerprint=print_,
                )
            )
        return job_to_proto(job)

    async def DropShadow(  # noqa: N802 - named by the proto
        self, request: search_pb2.DropShadowRequest, context: Context
    ) -> search_pb2.Collection:
        """Gives a complete shadow up."""
        if not request.version:
            raise InvalidArgument.field("version", "is required")
        record = await self._collections.drop_shadow(request.collection, request.version)
        return collection_to_proto(record, await self._collections.reader.info(record.name))


def found_to_proto(found: Found) -> search_pb2.SearchResponse:
    """As the wire has it."""
    response = search_pb2.SearchResponse(
        version=found.version,
        space_id=found.space_id,
        text_encoder_id=found.text_encoder_id,
        vision_encoder_id=found.vision_encoder_id,
    )
    for matches in found.matches:
        result = response.results.add()
        for match in matches:
            # In place: a Struct that is passed in is copied.
            hit = result.hits.add(id=match.id, score=match.score)
            write_payload(hit.payload, match.payload)
    if found.bridge is not None:
        response.bridge.CopyFrom(with_current(found.bridge))
    return response


def is_small(found: Found) -> bool:
    """Whether the event loop may build the answer itself."""
    inner: list[Any] = [match.payload for matches in found.matches for match in matches]
    if len(inner) > _FEW_HITS:
        return False
    left = _FEW_VALUES
    while inner:
        value = inner.pop()
        values = list(value.values()) if isinstance(value, dict) else value
        left -= len(values)
        if left < 0:
            return False
        inner += [one for one in values if isinstance(one, dict | list)]
    return True


def collection_to_proto(record: CollectionRecord, figures: ShardInfo) -> search_pb2.Collection:
    """As the wire has it."""
    message = search_pb2.Collection(
        name=record.name,
        model=record.model,
        version=record.version,
        space_id=record.space_id,
        text_encoder_id=record.text_encoder_id,
        vision_encoder_id=record.vision_encoder_id,
        dim=record.dim,
        points=figures.points,
        keep_sources=record.keep_sources,
        shadow_version=record.shadow_version or "",
        shadow_complete=record.shadow_complete,
        indexed_points=min(figures.indexed, figures.points),
        indexing=figures.building,
        has_texts=record.has_texts,
        has_images=record.has_images,
        has_vectors=record.has_vectors,
        previous_version=record.previous_version or "",
    )
    message.create_time.FromDatetime(record.create_time)
    return message


def _options(request: search_pb2.SearchRequest, deadline: float | None) -> SearchOptions:
    threshold = request.score_threshold if request.HasField("score_threshold") else None
    if threshold is not None and not math.isfinite(threshold):
        raise InvalidArgument.field("score_threshold", f"must be finite, is {threshold}")
    return SearchOptions(
        limit=request.limit if request.HasField("limit") else DEFAULT_LIMIT,
        payload_filter=filter_from_proto(request.filter),
        score_threshold=threshold,
        exact=request.exact,
        expected_space_id=request.expected_space_id,
        deadline=deadline,
    )


def _cursor(page: PageRequest) -> str:
    """Where a listing of points goes on; see ids.cursor_of."""
    if page.after is None:
        return ""
    try:
        return str(UUID(str(page.after[0])))
    except ValueError:
        raise invalid_token() from None


def _check_reindex(request: search_pb2.ReindexRequest) -> None:
    violations = [*name_violations(request.name), *request_id_violations(request.request_id)]
    if not request.version:
        violations.append(FieldViolation("version", "is required"))
    if violations:
        raise InvalidArgument.fields(violations)


def _check_count(field: str, count: int, most: int, reason: str) -> None:
    if not count:
        raise InvalidArgument.field(field, "must hold at least one")
    if count > most:
        raise ResourceExhausted(f"{field}: {count}, at most {most} are allowed", reason=reason)
