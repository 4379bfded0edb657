"""The engine folder of a shard that counts, and how another one takes its place.

<root>/<name>/CURRENT        name of the generation that counts, and the dimension
<root>/<name>/gen-<hex>/     an engine folder
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any

import qdrant_edge as engine

from hotclip_server.search.room import FREE_BYTES
from hotclip_server.storage.atomic import Files, require_free_space, write_atomically
from hotclip_server.storage.sparse import copy_folder, used_bytes

INDEXING_THRESHOLD_KB = 10_000
"""Vectors below this size in total are compared one by one: that is as fast as an index."""
_SEARCH_THREADS = 1
"""With one the engine searches on the caller's thread. With more it wakes a thread of its own for
every search, to go through the segments side by side; but one of them holds nearly every point."""
_CURRENT = "CURRENT"
_LOOKS = 10
"""At a folder in which the engine changes names, before that counts as a fault."""


def exists(folder: Path) -> bool:
    """Whether a folder is a shard."""
    return (folder / _CURRENT).exists()


def create(folder: Path, dim: int) -> tuple[str, Any]:
    """Makes the first generation; its name and the open engine."""
    name = new_name()
    (folder / name).mkdir(parents=True)
    config = engine.EdgeConfig(
        vectors=engine.EdgeVectorParams(size=dim, distance=engine.Distance.Cosine),
        hnsw_config=engine.HnswIndexConfig(
            m=32,
            ef_construct=128,
            full_scan_threshold=INDEXING_THRESHOLD_KB,
            max_indexing_threads=max(1, (os.cpu_count() or 2) // 2),
        ),
        optimizers=engine.EdgeOptimizersConfig(indexing_threshold=INDEXING_THRESHOLD_KB),
        max_search_threads=_SEARCH_THREADS,
    )
    edge = engine.EdgeShard.create(str(folder / name), config)
    edge.flush()
    _sync(folder / name)
    set_current(folder, name, dim)
    return name, edge


def load(folder: Path) -> tuple[int, str, Any]:
    """Opens the generation that counts and replays its write-ahead log; removes the others.

    Returns:
        Elements of a vector, name, open engine.

    Raises:
        FileNotFoundError: there is no shard.
    """
    current = json.loads((folder / _CURRENT).read_bytes())
    name = current["generation"]
    for entry in folder.iterdir():
        # Of builds that a crash cut short, and those they replaced.
        if entry.name.startswith("gen-") and entry.name != name:
            shutil.rmtree(entry, ignore_errors=True)
    return current["dim"], name, engine.EdgeShard.load(str(folder / name))


def new_name() -> str:
    """Of a generation to come."""
    return f"gen-{secrets.token_hex(8)}"


def set_current(folder: Path, name: str, dim: int) -> None:
    """From now on this one counts."""
    write_atomically(folder / _CURRENT, json.dumps({"generation": name, "dim": dim}).encode())


def give_up(folder: Path) -> None:
    """The folder is no shard any more, whatever lies in it."""
    (folder / _CURRENT).unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copies a flushed engine folder, to be built.

    Raises:
        ResourceExhausted: the copy and what is built of it may not fit; reason DISK_FULL.
    """
    for _ in range(_LOOKS - 1):
        try:
            _copy_what_is_there(source, target)
        except FileNotFoundError:
            # The engine made the next file of its log, as in `_sync`.
            shutil.rmtree(target, ignore_errors=True)
            continue
        return
    _copy_what_is_there(source, target)


async def build(target: Path, keys: dict[str, str]) -> None:
    """Builds the indexes of an engine folder in another process; on the disk when it returns.

    Args:
        keys: Payload fields that get an index, as query.py has them.

    Raises:
        OSError: it failed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hotclip_server.search.build",
        str(os.getpid()),
        str(target),
        json.dumps(keys),
    )
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if code != 0:
        raise OSError(f"the index builder ended with status {code}")
    await asyncio.to_thread(_sync, target)


def _sync(folder: Path) -> None:
    """Returns when all that is in a folder is on the disk.

    The engine makes the next file of its log on a thread of its own, under a name that it changes:
    what is gone when its turn comes is looked for again.

    Raises:
        OSError: it could not be written.
    """
    for _ in range(_LOOKS - 1):
        try:
            _sync_what_is_there(folder)
        except FileNotFoundError:
            continue
        return
    _sync_what_is_there(folder)


def _sync_what_is_there(folder: Path) -> None:
    files = Files()
    for place, _, names in os.walk(folder, topdown=False):
        for name in (*names, ""):
            files.sync(Path(place, name))


def _copy_what_is_there(source: Path, target: Path) -> None:
    require_free_space(source, 2 * used_bytes(source), floor=FREE_BYTES)
    copy_folder(source, target)
