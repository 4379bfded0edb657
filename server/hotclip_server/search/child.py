"""`python -m hotclip_server.search.child`: the process that owns the vector engine.

Answers the frames of `wire.py` on an inherited socket; ends when its parent does (end of
file). The engine holds the interpreter lock while it works, so requests are answered one
after the other; it imports neither torch nor the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hotclip_server.errors import HotclipError
from hotclip_server.loop import loop_factory
from hotclip_server.search import generations, wire
from hotclip_server.search.generations import INDEXING_THRESHOLD_KB
from hotclip_server.search.link import Link
from hotclip_server.search.room import FREE_BYTES
from hotclip_server.search.shard import AnswerTooLarge, Shard, ShardDamaged, ShardNotFound
from hotclip_server.storage.atomic import is_disk_full, require_free_space

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_IDLE_S = 1.0
"""An index is built when a shard has had no write for this long..."""
_OVERDUE = 8
"""...or at once when this many times the threshold is not indexed..."""
_SHARE = 0.05
"""...and this share of what is indexed: a build copies the shard, and takes about as long as if
there was no index yet. So what grows is copied, all in all, some 20 times at most..."""
_RESTS = 4
"""...and less is worth a build only when the shard has had no write for so many times as long as
the last one took. Until then what is not indexed is compared one by one."""
_MOST_KB = 256 << 10
"""More than this is always worth a build, however large the shard: every search reads all of it
with the interpreter lock held, some 25 ms at 10 GB/s, while the others wait. For that, what grows
beyond 5 GB is copied more often than 20 times."""
_BACK_OFF_S = 60.0
"""A build that failed is tried again after this, or after _RESTS times as long as it took. Else
every write to what is overdue would try, and perhaps copy the shard for nothing."""


class VectorProcess:
    """Open shards and what can be asked of them.

    Args:
        root: Folder of all shards.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._shards: dict[str, Shard] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        # Of shards whose last build failed: when it may be tried again, as the loop counts.
        self._backing_off: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._queued: set[str] = set()
        self._builder = asyncio.Lock()

    async def serve(self, connection: socket.socket) -> None:
        """Answers until the parent is gone, then closes the shards."""
        # Tasks start in the order of the frames: writes to a shard keep it.
        link = await Link.over(connection, lambda *frame: self._spawn(self._answer(*frame)))
        await link.ended()
        for timer in self._timers.values():
            timer.cancel()
        for shard in self._shards.values():
            await shard.close()

    async def _answer(self, link: Link, header: dict[str, Any], body: bytes) -> None:
        answer: dict[str, Any] = {"n": header["n"]}
        out = b""
        try:
            answer["result"], out = await self._do(header, body)
        except ShardNotFound as error:
            answer["error"] = ["not_found", str(error)]
        except ShardDamaged as error:
            traceback.print_exc()
            answer["error"] = ["damaged", str(error)]
        except AnswerTooLarge as error:
            answer["error"] = ["too_large", str(error)]
        except (HotclipError, OSError) as error:
            full = isinstance(error, HotclipError) or _means_full(error)
            answer["error"] = ["disk_full" if full else "internal", str(error)]
        except Exception as error:  # noqa: BLE001 - the parent raises it; the engine's errors are plain
            traceback.print_exc()
            answer["error"] = ["disk_full" if _means_full(error) else "internal", str(error)]
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
                raise
            # A panic of the engine, which is no Exception: what it has in memory may be broken.
            traceback.print_exc()
            answer["error"] = ["internal", str(error)]
            await _answer_and_die(link, answer)
        with contextlib.suppress(ConnectionError):  # Then nobody waits for it any more.
            link.send(wire.pack(answer, out))
            await link.room()

    async def _do(self, header: dict[str, Any], body: bytes) -> tuple[Any, bytes]:
        op = header["op"]
        if op == "ping":
            return os.getpid(), b""
        if op == "shards":
            return sorted(p.parent.name for p in self._root.glob("*/CURRENT")), b""
        name = header["shard"]
        if not _NAME.fullmatch(name):
            raise ShardNotFound(f"not a shard name: {name!r}")
        if op == "create":
            if name not in self._shards:
                if not generations.exists(self._root / name):
                    self._require_room()
                create = partial(Shard.create, self._root / name, header["dim"])
                self._opened(name, create)
            return None, b""
        if op == "drop":
            await self._drop(name)
            return None, b""
        return await self._do_on(self._shard(name), header, body)

    async def _do_on(self, shard: Shard, header: dict[str, Any], body: bytes) -> tuple[Any, bytes]:
        match header["op"]:
            case "search":
                vectors = wire.vectors_from_bytes(body, shard.dim)
                found = await shard.search(vectors, header)
                self._asked(shard)
                return None, found
            case "retrieve":
                return shard.retrieve(
                    header["ids"], header["with_vectors"], header["with_payloads"]
                )
            case "upsert":
                self._require_room(len(body))
                await shard.upsert(header["points"], wire.vectors_from_bytes(body, shard.dim))
                self._written(shard)
                return None, b""
            case "delete":
                deleted = await shard.delete(header["ids"])
                self._written(shard)
                return deleted, b""
            case "scroll":
                page = shard.scroll(header)
                self._asked(shard)
                return page
            case "count":
                points = shard.count(header["filter"])
                self._asked(shard)
                return points, b""
            case "info":
                return shard.info(), b""
            case "optimize":
                await shard.optimize()
                self._backing_off.pop(shard.folder.name, None)
                self._look_again(shard)
                return None, b""
            case "flush":
                shard.flush()
                return None, b""
        raise ValueError(f"unknown operation {header['op']!r}; this is a bug")

    def _require_room(self, size: int = 0) -> None:
        """Raises ResourceExhausted with reason DISK_FULL before the engine meets a full disk."""
        require_free_space(self._root, size, floor=FREE_BYTES)

    def _shard(self, name: str) -> Shard:
        if name not in self._shards:
            self._opened(name, partial(Shard.open, self._root / name))
        return self._shards[name]

    def _opened(self, name: str, opening: Callable[[], Shard]) -> None:
        try:
            shard = opening()
        except FileNotFoundError as error:
            raise ShardNotFound(f"no shard {name}") from error
        except OSError:
            raise
        except Exception as error:
            if _means_full(error):
                raise
            raise ShardDamaged(f"shard {name} can't be opened: {error}") from error
        self._shards[name] = shard
        self._written(shard)  # Perhaps not all of it was indexed when it was closed.

    async def _drop(self, name: str) -> None:
        folder = self._root / name
        # Without CURRENT it is no shard, should a crash cut the removal short, or a call come
        # while it is being closed.
        generations.give_up(folder)
        self._call_off(name)
        self._backing_off.pop(name, None)
        shard = self._shards.pop(name, None)
        if shard is not None:
            await shard.close()
        if folder.exists():
            await asyncio.to_thread(shutil.rmtree, folder)

    def _written(self, shard: Shard) -> None:
        """Plans an index build for when the shard has been idle, or at once if overdue."""
        name, keys = shard.folder.name, shard.wants_keys
        if not keys:  # Who writes all the time must not put those off for ever.
            self._call_off(name)
        if shard.building:
            return
        delays = [_IDLE_S] if keys else []
        size = shard.unindexed_kb()
        if size >= INDEXING_THRESHOLD_KB:
            delays.append(idle_before_build(size, shard.indexed_kb(), shard.build_s))
        if delays:
            self._plan_build(name, min(delays))

    def _asked(self, shard: Shard) -> None:
        """Plans a build if payload fields want an index."""
        if shard.wants_keys and not shard.building:
            self._plan_build(shard.folder.name, _IDLE_S)

    def _plan_build(self, name: str, delay: float) -> None:
        """Unless one is planned that is not later."""
        loop = asyncio.get_running_loop()
        due = max(loop.time() + delay, self._backing_off.get(name, 0.0))
        timer = self._timers.get(name)
        if timer is None or due < timer.when():
            self._call_off(name)
            self._timers[name] = loop.call_at(due, self._build, name)

    def _call_off(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _build(self, name: str) -> None:
        del self._timers[name]
        if name not in self._queued:
            self._queued.add(name)
            self._spawn(self._build_in_turn(name))

    async def _build_in_turn(self, name: str) -> None:
        """One after the other: each takes a core, and as much memory and disk as its shard."""
        async with self._builder:
            self._queued.discard(name)
            shard = self._shards.get(name)
            if shard is None:
                return
            # Perhaps somebody asked for a build meanwhile.
            if shard.wants_keys or shard.unindexed_kb() >= INDEXING_THRESHOLD_KB:
                await self._build_and_look_again(shard)

    async def _build_and_look_again(self, shard: Shard) -> None:
        name, loop = shard.folder.name, asyncio.get_running_loop()
        begun = loop.time()
        try:
            await shard.optimize()
        except Exception as error:  # noqa: BLE001 - of the engine, or of the disk; searches go on without
            if self._shards.get(name) is not shard:
                return  # It was dropped meanwhile.
            if name not in self._backing_off:  # Told once until one succeeds.
                told = f"index of {name} not built, tried again every now and then: {error}"
                print(told, file=sys.stderr, flush=True)
            ended = loop.time()
            self._backing_off[name] = ended + max(_BACK_OFF_S, _RESTS * (ended - begun))
        else:
            self._backing_off.pop(name, None)
        self._look_again(shard)

    def _look_again(self, shard: Shard) -> None:
        """Perhaps more came during a build than it has indexed."""
        if self._shards.get(shard.folder.name) is shard:
            self._written(shard)
            self._asked(shard)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def idle_before_build(unindexed_kb: int, indexed_kb: int, last_build_s: float) -> float:
    """Seconds without a write after which an index is built of what is worth one."""
    worth = min(_SHARE * indexed_kb, _MOST_KB)
    if unindexed_kb >= max(worth, _OVERDUE * INDEXING_THRESHOLD_KB):
        return 0.0
    return _IDLE_S if unindexed_kb >= worth else max(_IDLE_S, _RESTS * last_build_s)


def _means_full(error: Exception) -> bool:
    """Whether the disk is full, or a quota; the engine says so in words only."""
    words = map(os.strerror, (errno.ENOSPC, errno.EDQUOT))
    return is_disk_full(error) or any(word in str(error) for word in words)


async def _answer_and_die(link: Link, answer: dict[str, Any]) -> None:
    """The next process opens the shards from the disk. The caller is answered first, so that it
    does not ask that one the same."""
    with contextlib.suppress(ConnectionError):
        link.send(wire.pack(answer))
    await link.finish()
    os._exit(1)


def main() -> None:
    """Serves until the parent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--root", type=Path, required=True)
    arguments = parser.parse_args()
    # The server ends this process in order, after those who still search; signals of a terminal or
    # of a service manager reach both.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    arguments.root.mkdir(parents=True, exist_ok=True)
    with (arguments.root / ".lock").open("w") as lock:
        # The process of a server that was killed may still be closing the shards.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_leftovers(arguments.root)
        _serve(arguments.fd, arguments.root)


def _remove_leftovers(root: Path) -> None:
    """Of shards whose making or removal a crash cut short."""
    for folder in root.iterdir():
        if folder.is_dir() and _NAME.fullmatch(folder.name) and not generations.exists(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _serve(fd: int, root: Path) -> None:
    connection = socket.socket(fileno=fd)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(VectorProcess(root).serve(connection))


if __name__ == "__main__":
    main()
