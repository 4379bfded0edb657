"""`python -m support.reindex_lives <folder> <seed> <kills>`: one reindex, killed again and again.

Imports everything once and forks a process for each life of the server, which kills itself at a
moment that the seed chooses. Prints a JSON object for the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from support.search import World, search_world, text_point, text_query, text_vectors

from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.jobs.states import JobState
from hotclip_server.search.searcher import SearchOptions
from hotclip_server.testing import FakeEncoder, FakeLoader

POINTS = 2000
COLLECTION = "c"


class Mortal(FakeEncoder):
    """Writes down which texts it encodes; its process dies a little after so many of them."""

    def __init__(self, seed: str, notes: Path) -> None:
        super().__init__(seed)
        self.left: int | None = None
        """Texts until it dies; None: it lives."""
        self.delay_s = 0.0
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def encode(self, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        texts = ["".join(map(chr, item.array)) for item in batch if tower is Tower.TEXT]
        os.write(self._notes, "".join(f"{text}\n" for text in texts).encode())
        if self.left is not None:
            self.left -= len(texts)
            if self.left <= 0:
                threading.Timer(self.delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
                self.left = None
        return super().encode(tower, batch)


async def begin(world: World) -> str:
    """Fills the collection and queues the job; the version that it is for."""
    await world.collections.catalogue.create(COLLECTION)
    texts = [f"text {n}" for n in range(POINTS)]
    for start in range(0, POINTS, 500):
        points = [text_point(text, text) for text in texts[start : start + 500]]
        await world.collections.writer.upsert(COLLECTION, points)
    version = await world.load("two")
    await world.reindex(COLLECTION, version)
    return version


async def live(folder: Path, life: int, left: int | None, delay_s: float) -> dict[str, object]:
    """One life of the server; what came of the reindex, if it lives so long."""
    loader = FakeLoader()
    loader.import_source("fake:one")
    version = loader.import_source("fake:two").id
    mortal = Mortal("fake:two", folder / "encoded.txt")
    loader.encoders[version] = mortal
    async with search_world(folder / "data", loader) as world:
        if not await world.jobs.list(limit=1):
            await begin(world)
        mortal.left, mortal.delay_s = left, delay_s
        (job,) = await world.jobs.list(limit=1)
        if job.state is JobState.INTERRUPTED:
            await world.jobs.resume(job.id)
        late = f"late {life}"
        await world.collections.writer.upsert(COLLECTION, [text_point(late, late)])
        with (folder / "acknowledged.txt").open("a") as notes:
            notes.write(f"{late}\n")
        await world.collections.writer.delete(COLLECTION, [f"text {life}"])
        events = [event async for event in world.jobs.watch(job.id)]
        ended = await world.jobs.get(job.id)
        await world.registry.activate("default", version, collections=[COLLECTION])
        options = SearchOptions(limit=1000, exact=True)
        query = "a query"
        found = await world.collections.searcher.search(COLLECTION, [text_query(query)], options)
        texts = [match.id for match in found.matches[0]]
        scores = text_vectors(mortal, texts) @ text_vectors(mortal, [query])[0]
        shard = world.collections.catalogue.get(COLLECTION).shard
        wanted = [f"text {n}" for n in range(POINTS)] + [f"late {n}" for n in range(life + 1)]
        stored = await world.store.retrieve(shard, wanted)
        return {
            "state": ended.state.value,
            "version": found.version == version,
            "exact": bool(np.allclose([m.score for m in found.matches[0]], scores, atol=1e-5)),
            "stored": sorted(stored.revisions),
            "points": await world.collections.count(COLLECTION),
            "lives": life + 1,
            "seqs": [event.seq for event in events] == list(range(1, len(events) + 1)),
            "resumed": [e.resumed.from_step for e in events if e.HasField("resumed")],
        }


def one_life(folder: Path, life: int, left: int | None, delay_s: float) -> bool:
    """In a process of its own; whether it was killed."""
    child = os.fork()
    if child == 0:
        found = asyncio.run(live(folder, life, left, delay_s))
        (folder / "end.json").write_text(json.dumps(found))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError("a life ended badly")
    return False


def main() -> None:
    folder, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    (folder / "data").mkdir()
    chance = random.Random(seed)
    done = 0
    while done < kills and not (folder / "end.json").exists():
        left = chance.randint(1, POINTS // (kills + 1))
        done += one_life(folder, done, left, chance.uniform(0, 0.01))
    if not (folder / "end.json").exists():
        one_life(folder, done, None, 0.0)
    found = json.loads((folder / "end.json").read_text())
    print(json.dumps({**found, "kills": done}))


if __name__ == "__main__":
    main()
