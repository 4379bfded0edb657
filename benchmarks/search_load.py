"""Searches by the public client, in a process of its own.

    connect {address, collection, queries, space_id}
    single  {seconds, filter, exact}        → time of a search, in milliseconds
    batch   {seconds, size}                 → time of a batch of searches
    recall  {truth, filter, exact, by_picture} → share of the nearest that were found; also of
                                            the first `by_picture` queries and of the others

`queries` is float32 (n, dim), `truth` float32 (n,): the cosine of each query's tenth nearest. A
hit counts if it is as near: of points at equal distance any will do.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_clock import timed
from benchmarks.worker import obey
from hotclip import Client, Vector

LIMIT = 10
ROUNDING = 5e-6
"""Of a cosine in float32."""


class Searches:
    """A connection and what is asked."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._collection = ""
        self._queries: list[Vector] = []

    def connect(self, told: dict[str, Any]) -> dict[str, Any]:
        self._client = Client(told["address"], timeout=600)
        self._collection = told["collection"]
        rows: NDArray[np.float32] = np.load(Path(told["queries"]))
        self._queries = [Vector(row, told["space_id"]) for row in rows]
        return {}

    def single(self, told: dict[str, Any]) -> dict[str, Any]:
        def ask(at: int) -> None:
            hits = self.client.search(
                self._collection,
                self._queries[at],
                limit=LIMIT,
                filter=told["filter"],
                exact=told["exact"],
            )
            if not hits:
                raise RuntimeError(f"query {at} found nothing")

        return timed(ask, len(self._queries), told["seconds"])

    def batch(self, told: dict[str, Any]) -> dict[str, Any]:
        size = told["size"]
        batches = [
            self._queries[at : at + size] for at in range(0, len(self._queries) - size + 1, size)
        ]

        def ask(at: int) -> None:
            found = self.client.search(self._collection, batches[at], limit=LIMIT)
            if len(found) != size or not all(len(hits) == LIMIT for hits in found):
                raise RuntimeError(f"batch {at}: an answer is not whole")

        return timed(ask, len(batches), told["seconds"])

    def recall(self, told: dict[str, Any]) -> dict[str, Any]:
        truth: NDArray[np.float32] = np.load(Path(told["truth"]))
        found = self.client.search(
            self._collection,
            self._queries[: len(truth)],
            limit=LIMIT,
            filter=told["filter"],
            exact=told["exact"],
        )
        right = [
            sum(hit.score >= tenth - ROUNDING for hit in hits)
            for hits, tenth in zip(found, truth, strict=True)
        ]
        halves = right[: told["by_picture"]], right[told["by_picture"] :]
        return {
            "recall": float(np.mean(right)) / LIMIT,
            "halves": [float(np.mean(half)) / LIMIT for half in halves if half],
        }

    @property
    def client(self) -> Client:
        if self._client is None:
            raise RuntimeError("not connected")
        return self._client


def main() -> None:
    searches = Searches()
    obey(
        {
            "connect": searches.connect,
            "single": searches.single,
            "batch": searches.batch,
            "recall": searches.recall,
        }
    )


if __name__ == "__main__":
    main()
