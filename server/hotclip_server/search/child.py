"""`python -m hotclip_server.search.child`: the process that owns the vector engine.

Answers the frames of `wire.py` on an inherited socket; ends when its parent does (end of
file). The engine holds the interpreter lock while it works, so requests are answered one
after the other; it imports neither torch nor the server.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from hotclip_server.errors import HotclipError
from hotclip_server.loop import loop_factory
from hotclip_server.search import wire
from hotclip_server.search.shard import INDEXING_THRESHOLD_KB, AnswerTooLarge, Shard, ShardNotFound

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_IDLE_S = 1.0
"""An index is built when a shard has had no write for this long..."""
_OVERDUE = 8
"""...or at once when this many times the threshold is not indexed."""


class VectorProcess:
    """Open shards and what can be asked of them.

    Args:
        root: Folder of all shards.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._shards: dict[str, Shard] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, connection: socket.socket) -> None:
        """Answers until the parent is gone, then closes the shards."""
        reader, writer = await asyncio.open_connection(sock=connection, limit=wire.BUFFER_BYTES)
        while (frame := await wire.read(reader)) is not None:
            # Tasks start in the order of the frames: writes to a shard keep it.
            self._spawn(self._answer(writer, *frame))
        for timer in self._timers.values():
            timer.cancel()
        for shard in self._shards.values():
            await shard.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, header: dict[str, Any], body: bytes
    ) -> None:
        answer: dict[str, Any] = {"n": header["n"]}
        out = b""
        try:
            answer["result"], out = await self._do(header, body)
        except ShardNotFound as error:
            answer["error"] = ["not_found", str(error)]
        except AnswerTooLarge as error:
            answer["error"] = ["too_large", str(error)]
        except (HotclipError, OSError) as error:
            full = isinstance(error, HotclipError) or error.errno == errno.ENOSPC
            answer["error"] = ["disk_full" if full else "internal", str(error)]
        except Exception as error:  # noqa: BLE001 - the parent raises it; the engine's errors are plain
            traceback.print_exc()
            full = os.strerror(errno.ENOSPC) in str(error)
            answer["error"] = ["disk_full" if full else "internal", str(error)]
        writer.write(wire.pack(answer, out))
        await writer.drain()

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
                self._shards[name] = Shard.create(self._root / name, header["dim"])
            return None, b""
        if op == "drop":
            await self._drop(name)
            return None, b""
        return await self._do_on(self._shard(name), header, body)

    async def _do_on(self, shard: Shard, header: dict[str, Any], body: bytes) -> tuple[Any, bytes]:
        match header["op"]:
            case "search":
                return None, shard.search(wire.vectors_from_bytes(body, shard.dim), header)
            case "retrieve":
                return shard.retrieve(
                    header["ids"], header["with_vectors"], header["with_payloads"]
                )
            case "upsert":
                await shard.upsert(header["points"], wire.vectors_from_bytes(body, shard.dim))
                self._written(shard)
                return None, b""
            case "delete":
                deleted = await shard.delete(header["ids"])
                self._written(shard)
                return deleted, b""
            case "scroll":
                return shard.scroll(header)
            case "count":
                return shard.count(header["filter"]), b""
            case "info":
                return shard.info(), b""
            case "optimize":
                await shard.optimize()
                return None, b""
            case "flush":
                shard.flush()
                return None, b""
        raise ValueError(f"unknown operation {header['op']!r}; this is a bug")

    def _shard(self, name: str) -> Shard:
        if name not in self._shards:
            try:
                self._shards[name] = Shard.open(self._root / name)
            except FileNotFoundError as error:
                raise ShardNotFound(f"no shard {name}") from error
        return self._shards[name]

    async def _drop(self, name: str) -> None:
        shard = self._shards.pop(name, None)
        if shard is not None:
            await shard.close()
        folder = self._root / name
        if folder.exists():
            # Without CURRENT it is no shard, should a crash cut the removal short.
            (folder / "CURRENT").unlink(missing_ok=True)
            await asyncio.to_thread(shutil.rmtree, folder)

    def _written(self, shard: Shard) -> None:
        """Plans an index build for when the shard has been idle, or at once if overdue."""
        name = shard.folder.name
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        size = shard.unindexed_kb()
        if size < INDEXING_THRESHOLD_KB or shard.building:
            return
        delay = 0.0 if size >= _OVERDUE * INDEXING_THRESHOLD_KB else _IDLE_S
        self._timers[name] = asyncio.get_running_loop().call_later(delay, self._build, name)

    def _build(self, name: str) -> None:
        shard = self._shards.get(name)
        if shard is not None:
            self._spawn(self._build_and_look_again(shard))

    async def _build_and_look_again(self, shard: Shard) -> None:
        before = shard.unindexed_kb()
        try:
            await shard.optimize()
        except OSError as error:
            print(f"index of {shard.folder.name} not built: {error}", file=sys.stderr, flush=True)
            return
        # Points came meanwhile; but a build that gained nothing is not repeated.
        if self._shards.get(shard.folder.name) is shard and shard.unindexed_kb() < before:
            self._written(shard)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def main() -> None:
    """Serves until the parent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--root", type=Path, required=True)
    arguments = parser.parse_args()
    # An interrupt from the terminal is for the server, which ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arguments.root.mkdir(parents=True, exist_ok=True)
    with (arguments.root / ".lock").open("w") as lock:
        # The process of a server that was killed may still be closing the shards.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _serve(arguments.fd, arguments.root)


def _serve(fd: int, root: Path) -> None:
    connection = socket.socket(fileno=fd)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(VectorProcess(root).serve(connection))


if __name__ == "__main__":
    main()
