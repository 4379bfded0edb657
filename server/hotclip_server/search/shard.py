"""One shard inside the vector process: an engine folder that is replaced when re-indexed.

The engine's `optimize` holds the interpreter lock until it is done (10 s for 20,000 × 512),
so it runs in a builder process on a copy of the folder. Searches and writes go on; points
written meanwhile are copied over before the new generation takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import qdrant_edge as engine
from numpy.typing import NDArray

from hotclip_server.errors import HotclipError
from hotclip_server.search import generations
from hotclip_server.search.changes import Changes
from hotclip_server.search.filters import MAX_INDEXED_KEYS
from hotclip_server.search.generations import INDEXING_THRESHOLD_KB
from hotclip_server.search.ids import point_uuid
from hotclip_server.search.query import (
    MARK_IN_JSON,
    from_engine_value,
    indexable,
    to_engine_filter,
    to_engine_value,
)

_SEARCH_BREADTH = 256
"""Candidates that a search of the index keeps (ef)."""
_ACROSS = engine.AcornSearchParams(enable=True, max_selectivity=1.0)
"""Of every search with a filter: where too many points match to compare them one by one, the graph
is followed across those that don't, which cut it to pieces else (ACORN-1, Patel et al. 2024). How
many match is a guess as long as a field has no index, so no share of them is a bound here."""
_MAX_ANSWER_BYTES = 64 << 20
"""Of one search or look-up: bounds the memory of both processes."""
_MAX_PAGE_BYTES = 8 << 20
"""JSON of a page of a listing, unless it is of one point."""
_ROWS = 256
"""Points in one engine operation: bounds how long other requests wait."""
_EXACT_QUERIES = 8
"""Queries in one engine operation that compare with every vector, for the same reason."""


class ShardNotFound(Exception):
    """No such shard, or it was dropped meanwhile."""


class ShardDamaged(Exception):
    """The engine does not open what is on the disk."""


class AnswerTooLarge(Exception):
    """More was found than can be sent."""


class Shard:
    """An open shard. One event loop, no threads; `open` does the work.

    Args:
        folder: Its folder; the name is the shard's.
        dim: Elements of a vector.
        generation: Name of the engine folder.
        changes: Of which its index does not know.
    """

    def __init__(
        self, folder: Path, dim: int, generation: str, edge: Any, changes: Changes
    ) -> None:
        self.folder = folder
        self.dim = dim
        self._generation = generation
        self._edge = edge
        # Writes wait for each other and for the copying of the folder; reads never do.
        self._writing = asyncio.Lock()
        self._build: asyncio.Task[None] | None = None
        self._touched: set[UUID] | None = None
        self._closed = False
        self._changes = changes
        # Payload fields that have an index, or had their chance; and those that want one.
        self._indexed_keys = set(edge.info().payload_schema)
        self._wanted_keys: dict[str, str] = {}
        self.build_s = 0.0
        """How long the last build took."""

    @classmethod
    def create(cls, folder: Path, dim: int) -> Shard:
        """Makes an empty shard, or opens the one that is there."""
        if generations.exists(folder):
            return cls.open(folder)
        generation, edge = generations.create(folder, dim)
        return cls(folder, dim, generation, edge, Changes())

    @classmethod
    def open(cls, folder: Path) -> Shard:
        """Opens a shard and replays its write-ahead log.

        Raises:
            FileNotFoundError: there is none.
        """
        dim, generation, edge = generations.load(folder)
        changes = Changes.take(folder, edge.info().points_count)
        return cls(folder, dim, generation, edge, changes)

    @property
    def building(self) -> bool:
        """Whether an index is being built."""
        return self._build is not None

    @property
    def wants_keys(self) -> bool:
        """Whether searches filter by payload fields that have no index, and it is so large that
        looking at every point takes long."""
        return bool(self._wanted_keys) and self._kb(self._points()) >= INDEXING_THRESHOLD_KB

    def info(self) -> dict[str, Any]:
        """Figures as the protocol's ShardInfo."""
        info, points = self._edge.info(), self._edge.count(engine.CountRequest())
        return {
            "dim": self.dim,
            "points": points,
            "indexed": min(info.indexed_vectors_count, max(0, points - self._changes.stored)),
            "building": self.building,
        }

    def unindexed_kb(self) -> int:
        """Size of the vectors that the index may not cover; of all if so many of those that it
        covers are gone that it is worth building anew."""
        points = self._points()
        if self._changes.many_removed(points):
            return self._kb(points)
        return self._kb(min(self._changes.stored, points))

    def indexed_kb(self) -> int:
        """Size of the other vectors."""
        return self._kb(self._points()) - self.unindexed_kb()

    async def upsert(self, points: list[dict[str, Any]], vectors: NDArray[np.float32]) -> None:
        """Stores points [{i: id, r: revision, p: payload}] with vectors (n, dim), in order."""
        async with self._writing:
            self._check_open()
            for start in range(0, len(points), _ROWS):
                batch = points[start : start + _ROWS]
                ids = [point_uuid(p["i"]) for p in batch]
                if self._touched is not None:
                    self._touched.update(ids)
                rows = vectors[start : start + _ROWS].tolist()
                self._edge.update(
                    engine.UpdateOperation.upsert_points(
                        [
                            engine.Point(id=uid, vector=row, payload=_to_engine(point))
                            for uid, row, point in zip(ids, rows, batch, strict=True)
                        ]
                    )
                )
                self._changes.stored += len(batch)
                await asyncio.sleep(0)  # Searches that wait come first.

    async def delete(self, ids: list[str]) -> int:
        """Removes points; returns how many there were."""
        removed = 0
        async with self._writing:
            self._check_open()
            for chunk in _chunks(list({point_uuid(i) for i in ids})):
                uids: list[Any] = list(chunk)
                there = len(self._edge.retrieve(uids, with_payload=False, with_vector=False))
                if self._touched is not None:
                    self._touched.update(chunk)
                self._edge.update(engine.UpdateOperation.delete_points(uids))
                self._changes.removed += there
                removed += there
                await asyncio.sleep(0)  # Searches that wait come first.
        return removed

    async def search(self, vectors: NDArray[np.float32], options: dict[str, Any]) -> bytes:
        """JSON: per query a list of [id, score, payload]; options as in the protocol.

        Raises:
            AnswerTooLarge: it would be longer than 64 MiB.
        """
        self._check_open()
        breadth = max(_SEARCH_BREADTH, options["limit"])
        params = engine.SearchParams(
            exact=options["exact"],
            hnsw_ef=breadth,
            acorn=_ACROSS if options["filter"] is not None else None,
        )
        requests = [
            engine.QueryRequest(
                limit=options["limit"],
                query=engine.Query.Nearest(row),
                filter=to_engine_filter(options["filter"], map(point_uuid, out)),
                score_threshold=options["score_threshold"],
                params=params,
                with_payload=["i", "p"],
            )
            for row, out in zip(vectors.tolist(), options["exclude"], strict=True)
        ]
        together = max(1, _ROWS // options["limit"])
        if options["exact"]:
            together = min(together, _EXACT_QUERIES)
        self._want_keys(options["filter"])
        parts: list[bytes] = []
        for start in range(0, len(requests), together):
            batch = engine.QueryBatchRequest(requests[start : start + together])
            parts += [_to_json(hits) for hits in self._edge.query_batch(batch)]
            if sum(map(len, parts)) > _MAX_ANSWER_BYTES:
                raise AnswerTooLarge("the answer is too large; ask for fewer queries or hits")
            if start + together < len(requests):
                await asyncio.sleep(0)  # Others come in between.
                self._check_open()
        return b"[" + b",".join(parts) + b"]"

    def retrieve(
        self, ids: list[str], with_vectors: bool, with_payloads: bool
    ) -> tuple[dict[str, Any], bytes]:
        """Points that exist.

        Returns:
            {rows: [[id, revision]], vectors: bytes} and a body: so many bytes of their vectors,
            then JSON of their payloads, both in the order of the rows if asked for.

        Raises:
            AnswerTooLarge: it would be longer than 64 MiB.
        """
        self._check_open()
        uids = list({point_uuid(i) for i in ids})
        fields = ["i", "r", "p"] if with_payloads else ["i", "r"]
        records = self._edge.retrieve(uids, with_payload=fields, with_vector=with_vectors)
        rows = [[r.payload["i"], r.payload["r"]] for r in records]
        vectors = payloads = b""
        if with_vectors:
            vectors = np.array([r.vector for r in records], dtype="<f4").tobytes()
        if with_payloads:
            payloads = _dump([from_engine_value(r.payload["p"]) for r in records])
        if len(vectors) + len(payloads) > _MAX_ANSWER_BYTES:
            raise AnswerTooLarge("the answer is too large; ask for fewer points")
        return {"rows": rows, "vectors": len(vectors)}, vectors + payloads

    def scroll(self, options: dict[str, Any]) -> tuple[str, bytes]:
        """The cursor of the next page ("" after the last), and JSON [{i, r, p}] of this one.

        A page ends early where it would become longer than 8 MiB.
        """
        self._check_open()
        request = engine.ScrollRequest(
            offset=UUID(options["after"]) if options["after"] else None,
            limit=options["limit"],
            filter=to_engine_filter(options["filter"], ()),
            with_payload=True,
        )
        self._want_keys(options["filter"])
        records, following = self._edge.scroll(request)
        parts: list[bytes] = []
        size = 0
        for record in records:
            part = _dump({**record.payload, "p": from_engine_value(record.payload["p"])})
            size += len(part)
            if parts and size > _MAX_PAGE_BYTES:
                following = record.id
                break
            parts.append(part)
        return str(following or ""), b"[" + b",".join(parts) + b"]"

    def count(self, payload_filter: dict[str, Any] | None) -> int:
        """Points that match; all without a filter."""
        self._check_open()
        request = engine.CountRequest(filter=to_engine_filter(payload_filter, ()))
        self._want_keys(payload_filter)
        points: int = self._edge.count(request)
        return points

    def flush(self) -> None:
        """Forces everything to the disk."""
        self._edge.flush()

    async def optimize(self) -> None:
        """Builds the index in another process, or joins the build that runs."""
        if self._build is None:
            self._build = asyncio.create_task(self._rebuild())
            self._build.add_done_callback(self._build_ended)
        await asyncio.shield(self._build)

    async def close(self) -> None:
        """Stops a build and releases the engine."""
        if self._build is not None:
            self._build.cancel()
            await asyncio.gather(self._build, return_exceptions=True)
        async with self._writing:
            self._closed = True
            self._edge.close()
            with contextlib.suppress(OSError, HotclipError):  # Then they are not known.
                self._changes.keep(self.folder)

    def _check_open(self) -> None:
        if self._closed:
            raise ShardNotFound(f"shard {self.folder.name} was dropped")

    def _points(self) -> int:
        points: int = self._edge.info().points_count
        return points

    def _kb(self, points: int) -> int:
        return points * self.dim * 4 // 1024

    def _want_keys(self, payload_filter: dict[str, Any] | None) -> None:
        """Payload fields that are filtered by get an index with the next build. A field has one:
        who looks for texts where numbers were looked for first goes without."""
        for key, kind in indexable(payload_filter):
            if len(self._indexed_keys) + len(self._wanted_keys) == MAX_INDEXED_KEYS:
                return
            if key not in self._indexed_keys:
                self._wanted_keys.setdefault(key, kind)

    def _build_ended(self, task: asyncio.Task[None]) -> None:
        self._build = None
        self._touched = None

    async def _rebuild(self) -> None:
        generation = generations.new_name()
        target = self.folder / generation
        begun = time.monotonic()
        try:
            async with self._writing:
                self._edge.flush()
                await asyncio.to_thread(generations.copy, self.folder / self._generation, target)
                self._touched = set()
                built = replace(self._changes)
            # There is room. Also if the build fails: perhaps they are why.
            keys, self._wanted_keys = self._wanted_keys, {}
            self._indexed_keys |= keys.keys()
            await generations.build(target, keys)
            fresh = engine.EdgeShard.load(str(target))
            while len(self._touched) > 4 * _ROWS:  # The last few under the lock.
                done, self._touched = self._touched, set()
                for chunk in _chunks(list(done)):
                    self._carry_over(fresh, chunk)
                    await asyncio.sleep(0)
            async with self._writing:
                for chunk in _chunks(list(self._touched)):
                    self._carry_over(fresh, chunk)
                fresh.flush()
                try:
                    generations.set_current(self.folder, generation, self.dim)
                except OSError:
                    # Which generation the disk names is unknown: start again from the disk.
                    os._exit(1)
                replaced, self._edge = self._edge, fresh
                old, self._generation = self.folder / self._generation, generation
                self._touched = None
                self._changes = self._changes.without(built)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
            raise
        self.build_s = time.monotonic() - begun
        replaced.close()
        await asyncio.to_thread(shutil.rmtree, old)

    def _carry_over(self, fresh: Any, uids: list[UUID]) -> None:
        """Makes points in `fresh` as they are now."""
        records = self._edge.retrieve(uids, with_payload=True, with_vector=True)
        gone = set(uids) - {r.id for r in records}
        if records:
            points = [engine.Point(id=r.id, vector=r.vector, payload=r.payload) for r in records]
            fresh.update(engine.UpdateOperation.upsert_points(points))
        if gone:
            fresh.update(engine.UpdateOperation.delete_points(list(gone)))


def _to_json(hits: list[Any]) -> bytes:
    # The payload is converted each time that it is asked for.
    found = [(hit.score, hit.payload) for hit in hits]
    rows = [[point["i"], score, point["p"]] for score, point in found]
    told = _dump(rows)
    if MARK_IN_JSON not in told:
        return told  # As most payloads are stored as they are.
    return _dump([[point, score, from_engine_value(payload)] for point, score, payload in rows])


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _to_engine(point: dict[str, Any]) -> dict[str, Any]:
    return {**point, "p": to_engine_value(point["p"])}


def _chunks(uids: list[UUID]) -> list[list[UUID]]:
    return [uids[i : i + _ROWS] for i in range(0, len(uids), _ROWS)]
