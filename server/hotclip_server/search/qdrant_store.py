"""Vectors on a Qdrant server, for collections that this machine has no room for.

A shard is a Qdrant collection. Its name begins with what belongs to this data directory alone,
so that several hotclip servers may share a Qdrant server: each sees, and removes, its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from hotclip_server.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from hotclip_server.search.filters import MAX_INDEXED_KEYS, PayloadFilter
from hotclip_server.search.ids import point_uuid
from hotclip_server.search.protocol import Match, PointMeta, ShardInfo, Stored
from hotclip_server.search.qdrant_terms import index_failed, indexable, to_error, to_qdrant_filter
from hotclip_server.storage.atomic import write_atomically

T = TypeVar("T")

_ROWS = 256
"""Points of one request."""
_BREADTH = 256
"""Candidates that a search of the index keeps (ef)."""
_MAX_ANSWER_BYTES = 64 << 20
_MAX_PAGE_BYTES = 8 << 20
_PAUSES_S = (0.1, 0.5, 2.0)
"""Between attempts while the server is away."""
_POLL_S = 0.5


def connect(url: str, api_key: str, timeout_s: float) -> AsyncQdrantClient:
    """A client of a Qdrant server; connects with the first call.

    Args:
        api_key: Empty: none.
        timeout_s: Of one call.
    """
    # Its log would have a line for every call.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # ServerConfig refuses a key in clear, but for this machine.
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return AsyncQdrantClient(
            url=url,
            api_key=api_key or None,
            timeout=max(1, round(timeout_s)),
            check_compatibility=False,  # asks the server, blocking, before anything is started
        )


class QdrantStore:
    """A `VectorStore` on a Qdrant server. Event loop only.

    Args:
        client: From `connect`.
        namespace: File with the beginning of the names; made at the first start.
    """

    def __init__(self, client: AsyncQdrantClient, namespace: Path) -> None:
        self._client = client
        self._namespace = namespace
        self._prefix = ""
        # Payload fields with an index, by shard.
        self._indexed: dict[str, set[str]] = {}

    async def start(self) -> None:
        """See VectorStore.

        Raises:
            Unavailable: no answer.
            FailedPrecondition: it refuses the key; reason VECTORS_REFUSED.
        """
        self._prefix = await asyncio.to_thread(_read_or_make, self._namespace)
        await self.shards()

    async def close(self) -> None:
        """See VectorStore."""
        await self._client.close()

    async def create(self, shard: str, dim: int) -> None:
        """See VectorStore."""
        name = self._name(shard)

        async def make() -> None:
            if not await self._client.collection_exists(name):
                await self._client.create_collection(
                    name,
                    vectors_config=models.VectorParams(size=dim, distance=models.Distance.COSINE),
                    hnsw_config=models.HnswConfigDiff(m=32, ef_construct=128),
                )

        await self._ask(make)

    async def drop(self, shard: str) -> None:
        """See VectorStore."""
        await self._ask(partial(self._client.delete_collection, self._name(shard)))
        self._indexed.pop(shard, None)

    async def shards(self) -> list[str]:
        """See VectorStore."""
        prefix = self._name("")
        found = await self._ask(self._client.get_collections)
        names = [one.name for one in found.collections if one.name.startswith(prefix)]
        return sorted(name.removeprefix(prefix) for name in names)

    async def require_room(self, nbytes: int) -> None:
        """Does nothing: Qdrant says so when it is written to."""

    async def upsert(
        self, shard: str, points: Sequence[PointMeta], vectors: NDArray[np.float32]
    ) -> None:
        """See VectorStore."""
        for start in range(0, len(points), _ROWS):
            rows = slice(start, start + _ROWS)
            batch = [
                models.PointStruct(
                    id=str(point_uuid(point.id)),
                    vector=row,
                    payload={"i": point.id, "r": point.revision, "p": point.payload},
                )
                for point, row in zip(points[rows], vectors[rows].tolist(), strict=True)
            ]
            await self._ask(partial(self._client.upsert, self._name(shard), batch, wait=True))

    async def delete(self, shard: str, ids: Sequence[str]) -> int:
        """See VectorStore."""
        name, there = self._name(shard), 0
        for some in _parts(ids):
            uids: list[models.ExtendedPointId] = [str(point_uuid(i)) for i in some]
            there += len((await self.retrieve(shard, some)).revisions)
            selector = models.PointIdsList(points=uids)
            await self._ask(partial(self._client.delete, name, selector, wait=True))
        return there

    async def search(
        self,
        shard: str,
        vectors: NDArray[np.float32],
        *,
        limit: int,
        payload_filter: PayloadFilter | None = None,
        score_threshold: float | None = None,
        exact: bool = False,
        exclude: Sequence[Sequence[str]] | None = None,
    ) -> list[list[Match]]:
        """See VectorStore."""
        await self._index(shard, payload_filter)
        requests = [
            models.QueryRequest(
                query=row,
                limit=limit,
                filter=to_qdrant_filter(payload_filter, left_out),
                score_threshold=score_threshold,
                params=models.SearchParams(exact=exact, hnsw_ef=max(_BREADTH, limit)),
                with_payload=["i", "p"],
            )
            for row, left_out in zip(vectors.tolist(), exclude or [()] * len(vectors), strict=True)
        ]
        together = max(1, _ROWS // limit)
        found: list[list[Match]] = []
        size = 0
        for start in range(0, len(requests), together):
            part = requests[start : start + together]
            answers = await self._ask(
                partial(self._client.query_batch_points, self._name(shard), part)
            )
            matches = [[_match(hit) for hit in answer.points] for answer in answers]
            size += sum(_size(match.payload) for hits in matches for match in hits)
            if size > _MAX_ANSWER_BYTES:
                raise _too_large("queries or hits")
            found += matches
        return found

    async def retrieve(
        self,
        shard: str,
        ids: Sequence[str],
        *,
        with_vectors: bool = False,
        with_payloads: bool = False,
    ) -> Stored:
        """See VectorStore."""
        fields = ["i", "r", "p"] if with_payloads else ["i", "r"]
        stored, size = Stored({}), 0
        for some in _parts(ids):
            uids = [str(point_uuid(i)) for i in some]
            found = await self._ask(
                partial(
                    self._client.retrieve,
                    self._name(shard),
                    uids,
                    with_payload=fields,
                    with_vectors=with_vectors,
                )
            )
            for record in found:
                point = _payload(record)
                stored.revisions[point["i"]] = point["r"]
                if with_vectors:
                    vector = np.array(record.vector, np.float32)
                    stored.vectors[point["i"]] = vector
                    size += vector.nbytes
                if with_payloads:
                    stored.payloads[point["i"]] = point["p"]
                    size += _size(point["p"])
            if size > _MAX_ANSWER_BYTES:
                raise _too_large("points")
        return stored

    async def scroll(
        self,
        shard: str,
        *,
        after: str = "",
        limit: int = 1000,
        payload_filter: PayloadFilter | None = None,
    ) -> tuple[list[PointMeta], str]:
        """See VectorStore."""
        await self._index(shard, payload_filter)
        found, following = await self._ask(
            partial(
                self._client.scroll,
                self._name(shard),
                scroll_filter=to_qdrant_filter(payload_filter, ()),
                limit=limit,
                offset=after or None,
                with_payload=True,
            )
        )
        metas: list[PointMeta] = []
        size = 0
        for record in found:
            point = _payload(record)
            size += _size(point["p"])
            if metas and size > _MAX_PAGE_BYTES:
                return metas, str(record.id)
            metas.append(PointMeta(point["i"], point["r"], point["p"]))
        return metas, str(following or "")

    async def count(self, shard: str, payload_filter: PayloadFilter | None = None) -> int:
        """See VectorStore."""
        await self._index(shard, payload_filter)
        counted = await self._ask(
            partial(
                self._client.count,
                self._name(shard),
                count_filter=to_qdrant_filter(payload_filter, ()),
                exact=True,
            )
        )
        return counted.count

    async def info(self, shard: str) -> ShardInfo:
        """See VectorStore."""
        told = await self._ask(partial(self._client.get_collection, self._name(shard)))
        vectors = told.config.params.vectors
        if not isinstance(vectors, models.VectorParams):
            raise FailedPrecondition(
                f"the Qdrant collection {self._name(shard)} was not made by hotclip",
                reason="SHARD_FOREIGN",
            )
        return ShardInfo(
            dim=vectors.size,
            points=await self.count(shard),
            indexed=told.indexed_vectors_count or 0,
            building=told.status == models.CollectionStatus.YELLOW,
        )

    async def optimize(self, shard: str) -> None:
        """Waits until Qdrant, which builds its indexes by itself, has done so.

        Raises:
            FailedPrecondition: it failed, and does not try again by itself; reason INDEX_FAILED.
        """
        while True:
            told = await self._ask(partial(self._client.get_collection, self._name(shard)))
            if told.status == models.CollectionStatus.GREEN:
                return
            if told.status == models.CollectionStatus.RED:
                raise index_failed(self._name(shard), told)
            if told.status == models.CollectionStatus.GREY:  # it waits to be asked
                changed = models.OptimizersConfigDiff()
                await self._ask(
                    partial(
                        self._client.update_collection,
                        self._name(shard),
                        optimizers_config=changed,
                    )
                )
            await asyncio.sleep(_POLL_S)

    async def flush(self, shard: str) -> None:
        """Does nothing: a write is answered when Qdrant has it in its log."""

    async def _index(self, shard: str, payload_filter: PayloadFilter | None) -> None:
        """Payload fields get an index when they are filtered by for the first time: without one
        Qdrant looks at every point, and in its strict mode refuses."""
        known = self._indexed.setdefault(shard, set())
        for key, schema in indexable(payload_filter):
            if key not in known and len(known) < MAX_INDEXED_KEYS:
                name = self._name(shard)
                await self._ask(partial(self._client.create_payload_index, name, key, schema))
                known.add(key)

    def _name(self, shard: str) -> str:
        if not self._prefix:
            raise Unavailable("the vector index is not running")
        return self._prefix + shard

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """One call; again for a while when the server is away, for all are idempotent."""
        for pause in _PAUSES_S:
            try:
                return await self._once(call)
            except Unavailable:
                await asyncio.sleep(pause)
        return await self._once(call)

    async def _once(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except UnexpectedResponse as error:
            raise to_error(error) from error
        except ResponseHandlingException as error:
            raise Unavailable(
                f"the vector database does not answer: {error}", retry_after_s=1.0
            ) from error
        except ValueError as error:  # of the client's own engine in memory
            if "not found" not in str(error):
                raise
            raise NotFound(str(error), reason="SHARD_NOT_FOUND") from error


def _read_or_make(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"hotclip-{secrets.token_hex(8)}-".encode())
    return path.read_text("ascii")


def _too_large(what: str) -> ResourceExhausted:
    return ResourceExhausted(
        f"the answer is too large; ask for fewer {what}", reason="ANSWER_TOO_LARGE"
    )


def _parts(ids: Sequence[str]) -> Iterator[list[str]]:
    once = list(dict.fromkeys(ids))
    for start in range(0, len(once), _ROWS):
        yield once[start : start + _ROWS]


def _payload(record: models.Record | models.ScoredPoint) -> dict[str, Any]:
    if record.payload is None:
        raise ValueError(f"point {record.id} has no payload; hotclip did not store it")
    return record.payload


def _match(hit: models.ScoredPoint) -> Match:
    point = _payload(hit)
    return Match(point["i"], min(1.0, max(-1.0, hit.score)), point["p"])


def _size(payload: dict[str, Any]) -> int:
    return len(json.dumps(payload, separators=(",", ":")))
