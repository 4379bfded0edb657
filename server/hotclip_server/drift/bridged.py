"""Searches over a bridge: queries by a new version, mapped to where the stored vectors are.

Only where a request asks for it, and every answer says how approximate it is. No vector of one
space is compared with one of another as it is: the map stands between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1 import search_pb2
from hotclip_server.drift.bridge import CANDIDATES
from hotclip_server.drift.bridges import Bridges, StoredBridge
from hotclip_server.errors import FailedPrecondition, NotFound
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.search.encoding import Versions
from hotclip_server.search.moment import Moment
from hotclip_server.search.protocol import Match, VectorStore
from hotclip_server.search.records import CollectionRecord, binding_of
from hotclip_server.search.searcher import MAX_LIMIT, Found, Searcher, SearchOptions

_EPSILON = 1e-12
_AT_ONCE = 4096
"""Vectors that are looked up at a time, of more than one query."""


class BridgedSearcher:
    """Searches collections by their bridges. Event loop only."""

    def __init__(
        self,
        store: VectorStore,
        versions: Versions,
        catalogue: Catalogue,
        searcher: Searcher,
        bridges: Bridges,
    ) -> None:
        self._store = store
        self._versions = versions
        self._catalogue = catalogue
        self._searcher = searcher
        self._bridges = bridges

    async def search(
        self, name: str, queries: Sequence[search_pb2.Query], options: SearchOptions
    ) -> Found:
        """Approximately the nearest points of each query by the version of the bridge; exactly,
        once the collection is bound to that version.

        Scores approximate cosines in the space of that version. Errors as `Searcher.search`, and:

        Raises:
            NotFound: the collection has no bridge; reason NO_BRIDGE.
            FailedPrecondition: the collection holds other vectors than the bridge maps; reason
                BRIDGE_OUTDATED. Its version is not in memory; reason VERSION_NOT_RESIDENT.
        """
        self._searcher.check(queries, options)
        while True:
            bridge, current = await self._bridges.get(name)
            moment = Moment(self._catalogue, self._versions, name)
            record = moment.record
            if record.version == bridge.facts.version:
                return await self._searcher.search(name, queries, options)
            if not current:
                raise _outdated(record, bridge)
            _check_space(bridge, options.expected_space_id)
            try:
                found = await self._search(record, bridge, queries, options)
            except NotFound as error:
                # A flip put another shard in place of the one that this search had begun on.
                if error.reason != "SHARD_NOT_FOUND" or not moment.moved():
                    raise
            else:
                if moment.holds(bridge.facts.bound_version, record.shard):
                    return found

    async def _search(
        self,
        record: CollectionRecord,
        bridge: StoredBridge,
        queries: Sequence[search_pb2.Query],
        options: SearchOptions,
    ) -> Found:
        facts = bridge.facts
        # The collection as it would be, bound to the version of the bridge.
        with self._versions.pin(record.model, facts.version) as pin:
            there = replace(record, **asdict(binding_of(pin.resident)))
        wanted = await self._searcher.vectors_of(there, queries, options, stored=bridge.map.points)
        mapped = bridge.map.queries(wanted.vectors)
        lengths = np.maximum(np.linalg.norm(mapped, axis=1), _EPSILON)
        exact = bridge.map.keeps_lengths
        candidates = options.limit if exact else min(CANDIDATES * options.limit, MAX_LIMIT)
        found = await self._store.search(
            record.shard,
            mapped / lengths[:, None],
            limit=max(options.limit, candidates),
            payload_filter=options.payload_filter,
            exact=options.exact,
            exclude=wanted.exclude,
        )
        if exact:
            hits = [_scaled(m, float(length)) for m, length in zip(found, lengths, strict=True)]
        else:
            hits = await self._rescored(record, bridge, wanted.vectors, found)
        least = -np.inf if options.score_threshold is None else options.score_threshold
        return Found(
            matches=[[m for m in row if m.score >= least][: options.limit] for row in hits],
            version=facts.version,
            space_id=facts.space_id,
            text_encoder_id=there.text_encoder_id,
            vision_encoder_id=there.vision_encoder_id,
            bridge=facts,
        )

    async def _rescored(
        self,
        record: CollectionRecord,
        bridge: StoredBridge,
        queries: NDArray[np.float32],
        found: Sequence[Sequence[Match]],
    ) -> list[list[Match]]:
        """Candidates in the order of their cosines with the mapped points; a few queries at a
        time, so that few vectors are in memory."""
        scored: list[list[Match]] = []
        for group in _groups(found):
            ids = list({match.id for at in group for match in found[at]})
            stored = await self._store.retrieve(record.shard, ids, with_vectors=True)
            there = list(stored.vectors)  # Without those that were deleted meanwhile.
            rows: dict[str, NDArray[np.float32]] = {}
            if there:
                mapped = bridge.map.points(np.stack([stored.vectors[name] for name in there]))
                rows = dict(zip(there, mapped, strict=True))
            scored += [_by_cosine(queries[at], found[at], rows) for at in group]
        return scored


def _groups(found: Sequence[Sequence[Match]]) -> Iterator[list[int]]:
    """Positions of queries whose candidates are looked up together."""
    group: list[int] = []
    size = 0
    for at, matches in enumerate(found):
        if group and size + len(matches) > _AT_ONCE:
            yield group
            group, size = [], 0
        group.append(at)
        size += len(matches)
    if group:
        yield group


def _outdated(record: CollectionRecord, bridge: StoredBridge) -> FailedPrecondition:
    return FailedPrecondition(
        f"the bridge of collection {record.name!r} is for vectors of version "
        f"{bridge.facts.bound_version}; it is bound to {record.version} now: fit another",
        reason="BRIDGE_OUTDATED",
    )


def _check_space(bridge: StoredBridge, expected: str) -> None:
    if expected and bridge.facts.space_id != expected:
        raise FailedPrecondition(
            f"the bridge leads to space {bridge.facts.space_id}, the request expects {expected}",
            reason="SPACE_MISMATCH",
            metadata={"space_id": bridge.facts.space_id, "expected_space_id": expected},
        )


def _scaled(matches: Sequence[Match], length: float) -> list[Match]:
    """Products with the mapped query: the engine compares unit vectors."""
    return [replace(m, score=float(np.clip(m.score * length, -1.0, 1.0))) for m in matches]


def _by_cosine(
    query: NDArray[np.float32], hits: Sequence[Match], rows: Mapping[str, NDArray[np.float32]]
) -> list[Match]:
    scored = [replace(m, score=float(query @ rows[m.id])) for m in hits if m.id in rows]
    return sorted(scored, key=lambda match: -match.score)
