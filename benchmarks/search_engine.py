"""The vector engine called directly, in a process of its own, on a copy of the server's index.

    open    {folder, queries}           → seconds until the first search was answered
    single  {seconds}                   → time of a search, in milliseconds
    batch   {seconds, size}             → time of a batch of searches
    close   {}

It is asked as the server asks it: same breadth, same number of hits, ids and payloads read.
"""

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import qdrant_edge
from numpy.typing import NDArray

from benchmarks.search_clock import timed
from benchmarks.worker import obey

BREADTH = 256
"""Candidates that the server keeps (ef)."""
LIMIT = 10


class Engine:
    """An open index."""

    def __init__(self) -> None:
        self._shard: Any = None
        self._queries: NDArray[np.float32] = np.empty((0, 0), np.float32)

    def open(self, told: dict[str, Any]) -> dict[str, Any]:
        self._queries = np.load(Path(told["queries"]))
        began = perf_counter()
        self._shard = qdrant_edge.EdgeShard.load(told["folder"])
        self._ask(self._queries[:1])
        return {"seconds": perf_counter() - began}

    def close(self, told: dict[str, Any]) -> dict[str, Any]:
        self._shard.close()
        return {}

    def single(self, told: dict[str, Any]) -> dict[str, Any]:
        return self.batch({**told, "size": 1})

    def batch(self, told: dict[str, Any]) -> dict[str, Any]:
        size = told["size"]
        batches = [
            self._queries[at : at + size] for at in range(0, len(self._queries) - size + 1, size)
        ]
        return timed(lambda at: self._ask(batches[at]), len(batches), told["seconds"])

    def _ask(self, vectors: NDArray[np.float32]) -> list[list[tuple[str, float, Any]]]:
        requests = [
            qdrant_edge.QueryRequest(
                limit=LIMIT,
                query=qdrant_edge.Query.Nearest(row),
                params=qdrant_edge.SearchParams(exact=False, hnsw_ef=BREADTH),
                with_payload=["i", "p"],
            )
            for row in vectors.tolist()
        ]
        found = self._shard.query_batch(qdrant_edge.QueryBatchRequest(requests))
        # The payload is converted each time that it is asked for.
        return [[_read(hit.score, hit.payload) for hit in hits] for hits in found]


def _read(score: float, point: dict[str, Any]) -> tuple[str, float, Any]:
    return point["i"], score, point["p"]


def main() -> None:
    engine = Engine()
    obey(
        {
            "open": engine.open,
            "close": engine.close,
            "single": engine.single,
            "batch": engine.batch,
        }
    )


if __name__ == "__main__":
    main()
