"""What the rest of the server knows of a vector engine. Async, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hotclip_server.search.filters import PayloadFilter


@dataclass(frozen=True, slots=True)
class PointMeta:
    """What is stored beside a vector.

    id: The caller's id.
    revision: Write of the collection that put it there.
    payload: JSON object.
    """

    id: str
    revision: int
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Match:
    """A found point; score is the cosine in [-1, 1]."""

    id: str
    score: float
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """Points found by id, in no order.

    revisions: Revision of each point that exists.
    vectors: float32 (dim,) of each, if asked for.
    payloads: JSON object of each, if asked for.
    """

    revisions: dict[str, int]
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    payloads: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """Figures of one shard."""

    dim: int
    points: int
    indexed: int
    """Vectors covered by the approximate index; the others are compared one by one."""
    building: bool
    """Whether an index is being built."""


class VectorStore(Protocol):
    """Named shards of vectors of one dimension, compared by cosine.

    A write is durable (it survives the death of any process) when its call returns. Every
    call may raise Unavailable (the engine is away; retried for a while first), NotFound
    (reason SHARD_NOT_FOUND) and ResourceExhausted (reason DISK_FULL). All calls are
    idempotent.
    """

    async def start(self) -> None:
        """Waits until the engine answers. Raises Unavailable."""

    async def close(self) -> None:
        """Ends what `start` began; harmless if it did not."""

    async def create(self, shard: str, dim: int) -> None:
        """Makes an empty shard; does nothing if it is there."""

    async def drop(self, shard: str) -> None:
        """Removes a shard and its files; does nothing if there is none."""

    async def shards(self) -> list[str]:
        """Names of all shards."""

    async def require_room(self, nbytes: int) -> None:
        """Raises ResourceExhausted (reason DISK_FULL) if it is known that so many bytes of
        vectors would be refused now."""

    async def upsert(
        self, shard: str, points: Sequence[PointMeta], vectors: NDArray[np.float32]
    ) -> None:
        """Stores points in order; vectors float32 (len(points), dim)."""

    async def delete(self, shard: str, ids: Sequence[str]) -> int:
        """Removes points; returns how many there were."""

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
        """Nearest points of each query, best first; vectors float32 (queries, dim).

        `exclude` names the points that each query leaves out.

        Raises:
            ResourceExhausted: the answer is too large; reason ANSWER_TOO_LARGE.
        """

    async def retrieve(
        self,
        shard: str,
        ids: Sequence[str],
        *,
        with_vectors: bool = False,
        with_payloads: bool = False,
    ) -> Stored:
        """Looks points up by id; those that don't exist are left out.

        Raises:
            ResourceExhausted: the answer is too large; reason ANSWER_TOO_LARGE.
        """

    async def scroll(
        self,
        shard: str,
        *,
        after: str = "",
        limit: int = 1000,
        payload_filter: PayloadFilter | None = None,
    ) -> tuple[list[PointMeta], str]:
        """A page of points and the cursor of the next ("" after the last).

        Every shard lists in the order of ids.cursor_of, so that a cursor of one holds in
        another. A page may be shorter than `limit`, so as not to be too large.
        """

    async def count(self, shard: str, payload_filter: PayloadFilter | None = None) -> int:
        """How many points match; all without a filter."""

    async def info(self, shard: str) -> ShardInfo:
        """Figures of a shard."""

    async def optimize(self, shard: str) -> None:
        """Builds the approximate index over all points; searches go on meanwhile."""

    async def flush(self, shard: str) -> None:
        """Forces a shard to the disk."""
