"""The embedded vector engine in a supervised process of its own.

`EdgeStore` starts the process, multiplexes calls over one socket, starts it again when it
dies and sends unanswered calls once more: all are idempotent, and the engine's write-ahead
log keeps what was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotclip_server.errors import (
    DataLoss,
    HotclipError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from hotclip_server.search import wire
from hotclip_server.search.filters import PayloadFilter
from hotclip_server.search.link import Link
from hotclip_server.search.protocol import Match, PointMeta, ShardInfo, Stored
from hotclip_server.search.room import Room
from hotclip_server.search.slots import Slot

_log = logging.getLogger(__name__)

_ROWS_PER_FRAME = 256
_SMALL_BYTES = 64 << 10
_ATTEMPTS = 3
_BACKOFF_S = (0.05, 0.2, 1.0, 5.0)
_STARTED_WELL_S = 10.0
_BUILD_TIMEOUT_S = 3600.0


class _Gone(Exception):
    """The process died before it answered."""


class EdgeStore:
    """A `VectorStore` on this machine. Event loop only.

    Args:
        root: Folder of the shards.
        timeout_s: Longest one call may take; a process that takes longer is replaced.
        max_in_flight: Calls sent and not answered; more wait.
    """

    def __init__(self, root: Path, *, timeout_s: float = 60.0, max_in_flight: int = 64) -> None:
        self._root = root
        self._room = Room(root)
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(max_in_flight)
        self._numbers = itertools.count(1)
        self._pending: dict[int, tuple[asyncio.Future[tuple[Any, bytes]], Slot]] = {}
        self._link: Link | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._connected = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the vector process; None while there is none."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Starts the process and waits until it answers.

        Raises:
            Unavailable: it does not.
        """
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise(), name="vector-process")
        await self._call("ping")

    async def close(self) -> None:
        """Ends the process in order: it flushes and closes the shards."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        for task in (self._looking, supervisor):
            if task is not None:
                task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await supervisor

    async def create(self, shard: str, dim: int) -> None:
        """See VectorStore."""
        await self._call("create", shard=shard, dim=dim)

    async def drop(self, shard: str) -> None:
        """See VectorStore."""
        await self._call("drop", shard=shard)

    async def shards(self) -> list[str]:
        """See VectorStore."""
        names: list[str] = (await self._call("shards"))[0]
        return names

    async def require_room(self, nbytes: int) -> None:
        """See VectorStore."""
        await self._room.require(nbytes)

    async def upsert(
        self, shard: str, points: Sequence[PointMeta], vectors: NDArray[np.float32]
    ) -> None:
        """See VectorStore."""
        for start in range(0, len(points), _ROWS_PER_FRAME):
            rows = slice(start, start + _ROWS_PER_FRAME)
            batch = [{"i": p.id, "r": p.revision, "p": p.payload} for p in points[rows]]
            body = wire.vectors_to_bytes(vectors[rows])
            await self._call("upsert", body=body, shard=shard, points=batch)

    async def delete(self, shard: str, ids: Sequence[str]) -> int:
        """See VectorStore."""
        deleted: int = (await self._call("delete", shard=shard, ids=list(ids)))[0]
        return deleted

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
        _, answer = await self._call(
            "search",
            body=wire.vectors_to_bytes(vectors),
            shard=shard,
            limit=limit,
            filter=_told(payload_filter),
            score_threshold=score_threshold,
            exact=exact,
            exclude=[list(ids) for ids in exclude] if exclude else [[]] * len(vectors),
        )
        found = await _parsed(answer)
        return [
            [Match(point, min(1.0, max(-1.0, score)), payload) for point, score, payload in hits]
            for hits in found
        ]

    async def retrieve(
        self,
        shard: str,
        ids: Sequence[str],
        *,
        with_vectors: bool = False,
        with_payloads: bool = False,
    ) -> Stored:
        """See VectorStore."""
        answer, body = await self._call(
            "retrieve",
            shard=shard,
            ids=list(ids),
            with_vectors=with_vectors,
            with_payloads=with_payloads,
        )
        rows, size = answer["rows"], answer["vectors"]
        stored = Stored(dict(rows))
        if with_vectors and rows:
            matrix = wire.vectors_from_bytes(body[:size], size // 4 // len(rows))
            stored.vectors.update((row[0], vec) for row, vec in zip(rows, matrix, strict=True))
        if with_payloads:
            payloads = await _parsed(body[size:])
            stored.payloads.update((row[0], load) for row, load in zip(rows, payloads, strict=True))
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
        following, body = await self._call(
            "scroll", shard=shard, after=after, limit=limit, filter=_told(payload_filter)
        )
        rows = await _parsed(body)
        return [PointMeta(row["i"], row["r"], row["p"]) for row in rows], following

    async def count(self, shard: str, payload_filter: PayloadFilter | None = None) -> int:
        """See VectorStore."""
        points: int = (await self._call("count", shard=shard, filter=_told(payload_filter)))[0]
        return points

    async def info(self, shard: str) -> ShardInfo:
        """See VectorStore."""
        return ShardInfo(**(await self._call("info", shard=shard))[0])

    async def optimize(self, shard: str) -> None:
        """See VectorStore."""
        await self._call("optimize", timeout_s=_BUILD_TIMEOUT_S, shard=shard)

    async def flush(self, shard: str) -> None:
        """See VectorStore."""
        await self._call("flush", shard=shard)

    async def _call(
        self, op: str, *, body: bytes = b"", timeout_s: float | None = None, **header: object
    ) -> tuple[Any, bytes]:
        """One request; sent again if the process died under it."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        for _ in range(_ATTEMPTS):
            slot = await self._slot()
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._send(op, header, body, slot)
            except _Gone:
                continue
            except TimeoutError:
                if self._connected.is_set() and self._looking is None:
                    self._looking = asyncio.create_task(self._look(op), name="vector-process-look")
                break
            finally:
                slot.left()
        raise Unavailable("the vector index does not answer", retry_after_s=1.0)

    async def _slot(self) -> Slot:
        if not self._slots.locked():
            await self._slots.acquire()  # At once.
            return Slot(self._slots.release)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise Unavailable("the vector index is overloaded", retry_after_s=1.0) from error
        return Slot(self._slots.release)

    async def _look(self, op: str) -> None:
        """Replaces a process that does nothing any more. One that is busy, e.g. copies what an
        index is built of while writes wait, still answers what needs no shard."""
        process = self._process
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send("ping", {}, b"", Slot(lambda: None))
        except TimeoutError:
            if process is not None and process is self._process:
                _log.error("the vector process did not answer %s; replacing it", op)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        except (_Gone, Unavailable):
            pass  # Replaced already, or closed.
        finally:
            self._looking = None

    async def _send(
        self, op: str, header: dict[str, object], body: bytes, slot: Slot
    ) -> tuple[Any, bytes]:
        if self._supervisor is None or self._supervisor.done():
            raise Unavailable("the vector index is not running")
        # Payloads may be large, ids many: their JSON is made off the loop.
        frame = {"n": (number := next(self._numbers)), "op": op, **header}
        packed = (
            await asyncio.to_thread(wire.pack, frame, body)
            if op in ("upsert", "delete")
            else wire.pack(frame, body)
        )
        while (link := self._link) is None:
            await self._connected.wait()
        answer: asyncio.Future[tuple[Any, bytes]] = asyncio.get_running_loop().create_future()
        # The process works on it also when nobody waits for the answer any more.
        self._pending[number] = answer, slot
        slot.sent()
        try:
            link.send(packed)
            await link.room()
        except ConnectionError as error:
            self._disconnect(link)
            if self._pending.pop(number, None) is not None:
                slot.answered()
            raise _Gone from error
        return await answer

    def _disconnect(self, link: Link) -> None:
        """Makes calls wait for the next process, if the one of `link` is still the last."""
        if self._link is link:
            self._connected.clear()
            self._link = None

    async def _supervise(self) -> None:
        """Runs one process after the other, with growing pauses while they die young."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while True:
            started = loop.time()
            try:
                await self._run_process()
            except OSError as error:
                _log.error("the vector process can't be started: %s", error)
            except ValueError:
                _log.exception("the vector process sent what is no frame; this is a bug")
            finally:
                self._connected.clear()
                self._link = None
                pending, self._pending = self._pending, {}
                for answer, slot in pending.values():
                    slot.answered()
                    _fail(answer, _Gone())
            deaths = 0 if loop.time() - started > _STARTED_WELL_S else deaths + 1
            pause = _BACKOFF_S[min(deaths, len(_BACKOFF_S) - 1)]
            _log.error("the vector process died; starting it again in %.2f s", pause)
            await asyncio.sleep(pause)

    async def _run_process(self) -> None:
        """Starts a process, reads its answers, returns when it is gone."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "hotclip_server.search.child",
                f"--fd={theirs.fileno()}",
                f"--root={self._root}",
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        self._process = process
        link = self._link = await Link.over(ours, self._settle)
        self._connected.set()
        try:
            await link.ended()
        finally:
            self._disconnect(link)
            link.close()
            await self._end(process)
            self._process = None

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        # The end of file tells it to close its shards.
        try:
            async with asyncio.timeout(self._timeout_s):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def _settle(self, _link: Link, header: dict[str, Any], body: bytes) -> None:
        call = self._pending.pop(header["n"], None)
        if call is None:
            return
        answer, slot = call
        slot.answered()
        if "error" in header:
            _fail(answer, _to_error(*header["error"]))
        elif not answer.done():
            answer.set_result((header["result"], body))


def _fail(answer: asyncio.Future[tuple[Any, bytes]], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # Perhaps nobody looks at it.


def _told(payload_filter: PayloadFilter | None) -> dict[str, Any] | None:
    return payload_filter.to_json() if payload_filter else None


async def _parsed(body: bytes) -> Any:
    """JSON; a long one must not hold up the loop."""
    small = len(body) < _SMALL_BYTES
    return json.loads(body) if small else await asyncio.to_thread(json.loads, body)


def _to_error(kind: str, message: str) -> Exception:
    errors: dict[str, HotclipError] = {
        "not_found": NotFound(message, reason="SHARD_NOT_FOUND"),
        "disk_full": ResourceExhausted(message, reason="DISK_FULL"),
        "too_large": ResourceExhausted(message, reason="ANSWER_TOO_LARGE"),
        "damaged": DataLoss(message, reason="SHARD_DAMAGED"),
    }
    return errors.get(kind) or RuntimeError(f"the vector engine failed: {message}")
