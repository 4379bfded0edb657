"""One shard inside the vector process: an engine folder that is replaced when re-indexed.

    <root>/<name>/CURRENT        name of the generation that counts, and the dimension
    <root>/<name>/gen-<hex>/     an engine folder

The engine's `optimize` holds the interpreter lock until it is done (10 s for 20,000 × 512),
so it runs in a builder process on a copy of the folder. Searches and writes go on; points
written meanwhile are copied over before the new generation takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import qdrant_edge as engine
from numpy.typing import NDArray

from hotclip_server.search.ids import point_uuid
from hotclip_server.search.query import from_engine_value, to_engine_filter, to_engine_value
from hotclip_server.storage.atomic import write_atomically

INDEXING_THRESHOLD_KB = 10_000
"""Vectors below this size in total are compared one by one: that is as fast as an index."""
_SEARCH_BREADTH = 256
"""Candidates that a search of the index keeps (ef)."""
_MAX_ANSWER_BYTES = 64 << 20
"""Of one search or look-up: bounds the memory of both processes."""
_MAX_PAGE_BYTES = 8 << 20
"""JSON of a page of a listing, unless it is of one point."""
_ROWS = 256
"""Points in one engine operation: bounds how long other requests wait."""


class ShardNotFound(Exception):
    """No such shard, or it was dropped meanwhile."""


class AnswerTooLarge(Exception):
    """More was found than can be sent."""


class Shard:
    """An open shard. One event loop, no threads; `open` does the work.

    Args:
        folder: Its folder; the name is the shard's.
        dim: Elements of a vector.
        generation: Name of the engine folder.
    """

    def __init__(self, folder: Path, dim: int, generation: str, edge: Any) -> None:
        self.folder = folder
        self.dim = dim
        self._generation = generation
        self._edge = edge
        # Writes wait for each other and for the copying of the folder; reads never do.
        self._writing = asyncio.Lock()
        self._build: asyncio.Task[None] | None = None
        self._touched: set[UUID] | None = None
        self._closed = False

    @classmethod
    def create(cls, folder: Path, dim: int) -> Shard:
        """Makes an empty shard, or opens the one that is there."""
        if (folder / "CURRENT").exists():
            return cls.open(folder)
        folder.mkdir(parents=True, exist_ok=True)
        generation = _new_generation()
        (folder / generation).mkdir()
        config = engine.EdgeConfig(
            vectors=engine.EdgeVectorParams(size=dim, distance=engine.Distance.Cosine),
            hnsw_config=engine.HnswIndexConfig(
                m=32,
                ef_construct=128,
                full_scan_threshold=INDEXING_THRESHOLD_KB,
                max_indexing_threads=max(1, (os.cpu_count() or 2) // 2),
            ),
            optimizers=engine.EdgeOptimizersConfig(indexing_threshold=INDEXING_THRESHOLD_KB),
            max_search_threads=2,
        )
        edge = engine.EdgeShard.create(str(folder / generation), config)
        edge.flush()
        _set_current(folder, generation, dim)
        return cls(folder, dim, generation, edge)

    @classmethod
    def open(cls, folder: Path) -> Shard:
        """Opens a shard and replays its write-ahead log.

        Raises:
            FileNotFoundError: there is none.
        """
        current = json.loads((folder / "CURRENT").read_bytes())
        generation = current["generation"]
        for entry in folder.iterdir():
            # Generations of builds that a crash cut short, and of those they replaced.
            if entry.name.startswith("gen-") and entry.name != generation:
                shutil.rmtree(entry, ignore_errors=True)
        edge = engine.EdgeShard.load(str(folder / generation))
        return cls(folder, current["dim"], generation, edge)

    @property
    def building(self) -> bool:
        """Whether an index is being built."""
        return self._build is not None

    def info(self) -> dict[str, Any]:
        """Figures as the protocol's ShardInfo."""
        info = self._edge.info()
        return {
            "dim": self.dim,
            "points": self._edge.count(engine.CountRequest()),
            "indexed": info.indexed_vectors_count,
            "building": self.building,
        }

    def unindexed_kb(self) -> int:
        """Size of the vectors that the index does not cover."""
        info = self._edge.info()
        unindexed: int = max(0, info.points_count - info.indexed_vectors_count)
        return unindexed * self.dim * 4 // 1024

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
                await asyncio.sleep(0)  # Searches that wait come first.

    async def delete(self, ids: list[str]) -> int:
        """Removes points; returns how many there were."""
        async with self._writing:
            self._check_open()
            uids: list[Any] = list({point_uuid(i) for i in ids})
            there = len(self._edge.retrieve(uids, with_payload=False, with_vector=False))
            if self._touched is not None:
                self._touched.update(uids)
            self._edge.update(engine.UpdateOperation.delete_points(uids))
            return there

    def search(self, vectors: NDArray[np.float32], options: dict[str, Any]) -> bytes:
        """JSON: per query a list of [id, score, payload]; options as in the protocol.

        Raises:
            AnswerTooLarge: it would be longer than 64 MiB.
        """
        self._check_open()
        breadth = max(_SEARCH_BREADTH, options["limit"])
        params = engine.SearchParams(exact=options["exact"], hnsw_ef=breadth)
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
        parts: list[bytes] = []
        for start in range(0, len(requests), together):
            batch = engine.QueryBatchRequest(requests[start : start + together])
            parts += [_to_json(hits) for hits in self._edge.query_batch(batch)]
            if sum(map(len, parts)) > _MAX_ANSWER_BYTES:
                raise AnswerTooLarge("the answer is too large; ask for fewer queries or hits")
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
            with contextlib.suppress(asyncio.CancelledError):
                await self._build
        async with self._writing:
            self._closed = True
            self._edge.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ShardNotFound(f"shard {self.folder.name} was dropped")

    def _build_ended(self, task: asyncio.Task[None]) -> None:
        self._build = None
        self._touched = None

    async def _rebuild(self) -> None:
        generation = _new_generation()
        target = self.folder / generation
        try:
            async with self._writing:
                self._edge.flush()
                await asyncio.to_thread(shutil.copytree, self.folder / self._generation, target)
                self._touched = set()
            await _run_builder(target)
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
                    _set_current(self.folder, generation, self.dim)
                except OSError:
                    # Which generation the disk names is unknown: start again from the disk.
                    os._exit(1)
                replaced, self._edge = self._edge, fresh
                old, self._generation = self.folder / self._generation, generation
                self._touched = None
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
            raise
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
    return _dump([[point["i"], score, from_engine_value(point["p"])] for score, point in found])


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _to_engine(point: dict[str, Any]) -> dict[str, Any]:
    return {**point, "p": to_engine_value(point["p"])}


async def _run_builder(folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hotclip_server.search.build", str(os.getpid()), str(folder)
    )
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if code != 0:
        raise OSError(f"the index builder ended with status {code}")


def _chunks(uids: list[UUID]) -> list[list[UUID]]:
    return [uids[i : i + _ROWS] for i in range(0, len(uids), _ROWS)]


def _new_generation() -> str:
    return f"gen-{secrets.token_hex(8)}"


def _set_current(folder: Path, generation: str, dim: int) -> None:
    content = json.dumps({"generation": generation, "dim": dim}).encode()
    write_atomically(folder / "CURRENT", content)
