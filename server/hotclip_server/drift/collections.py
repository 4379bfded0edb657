"""What a change of version means for one collection: its vectors, its neighbours, its costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1 import drift_pb2
from hotclip_server.drift import records
from hotclip_server.drift.encoding import TOWERS, SampleEncoder
from hotclip_server.drift.shift import Vectors, overlap_of_queries, overlap_within
from hotclip_server.encoding.protocol import Tower
from hotclip_server.jobs.waiting import LoopWait
from hotclip_server.search import records as search_records
from hotclip_server.search.protocol import VectorStore
from hotclip_server.search.records import Binding, CollectionRecord, SourceRow
from hotclip_server.storage.database import Database

Need = drift_pb2.CollectionDrift.Need

_DRAWN_AT_ONCE = 128
"""Rows that are looked up in one transaction: whoever writes waits for it."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What of a collection reindexing for a version encodes, and whether it can."""

    need: Need.ValueType
    points: int
    by_tower: Mapping[Tower, int]
    """Points by what encodes them; those without a source are in neither."""
    to_encode: Mapping[Tower, int]

    @property
    def encoded(self) -> int:
        """Points that are encoded; the others are copied."""
        return sum(self.to_encode.values())

    def seconds(self, rates: Mapping[Tower, float | None], stored_per_s: float | None) -> float:
        """Predicted, as a reindex does it: encoding, then storing; NaN if a rate is not known."""
        if self.need != Need.NEED_REINDEX:
            return 0.0
        total = self.points / stored_per_s if stored_per_s else np.nan
        for tower, items in self.to_encode.items():
            if items:
                rate = rates.get(tower)
                total += items / rate if rate else np.nan
        return float(total)


def changed_towers(old: CollectionRecord | Binding, new: Binding) -> frozenset[Tower]:
    """Towers whose vectors of one are of no use with those of the other."""
    ids = {
        Tower.TEXT: (old.text_encoder_id, new.text_encoder_id),
        Tower.VISION: (old.vision_encoder_id, new.vision_encoder_id),
    }
    return frozenset(tower for tower, (before, after) in ids.items() if before != after)


def costs_of(
    record: CollectionRecord, new: Binding, kinds: Mapping[str, int], points: int
) -> Costs:
    """What making `new` live means for a collection.

    Args:
        kinds: Stored sources by kind; empty if none are kept.
        points: Of the live shard.
    """
    changed = changed_towers(record, new)
    by_tower = dict.fromkeys(Tower, 0)
    for kind, count in kinds.items():
        if kind in TOWERS:
            by_tower[TOWERS[kind]] += count
    unknown = max(0, points - sum(by_tower.values()))
    to_encode = {tower: count if tower in changed else 0 for tower, count in by_tower.items()}
    complete = record.shadow_version == new.version and record.shadow_complete
    if new.version in (record.version, record.previous_version) or complete:
        need = Need.NEED_DONE
    elif record.unchanged_by(new):
        need = Need.NEED_NONE  # by the very rule by which it follows a flip
    elif unknown:
        need = Need.NEED_SOURCES
    else:
        need = Need.NEED_REINDEX
    return Costs(need=need, points=points, by_tower=by_tower, to_encode=to_encode)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Points of a collection with their vectors of two versions; rows belong together."""

    rows: Sequence[SourceRow]
    bound: Vectors
    """float32 (rows, dim), as stored: of the version that the collection is bound to."""
    new: Vectors
    """float32 (rows, another dim), of the version that might go live."""
    unfit: int = 0
    """Points that could not be encoded, and are not among the rows."""

    def of(self, tower: Tower) -> NDArray[np.int64]:
        """Positions of the rows that a tower encodes."""
        found = [at for at, row in enumerate(self.rows) if TOWERS[row.kind] is tower]
        return np.array(found, np.int64)


class Sampler:
    """Draws and encodes samples of collections; job thread only."""

    def __init__(
        self, database: Database, store: VectorStore, encoder: SampleEncoder, wait: LoopWait
    ) -> None:
        self._database = database
        self._store = store
        self._encoder = encoder
        self._wait = wait

    def kinds(self, record: CollectionRecord) -> dict[str, int]:
        """Stored sources by kind; none if the collection keeps none."""
        if not record.keep_sources:
            return {}
        with self._database.transaction() as connection:
            return records.kinds(connection, record.name)

    def points(self, record: CollectionRecord) -> int:
        """Of the live shard."""
        return self._wait(self._store.info(record.shard)).points

    def sample(
        self, record: CollectionRecord, new: Binding, most: int, *, points: int, seed: int
    ) -> Sample:
        """Points with a source, as they are stored and by the new version: encoded where its
        tower is another one, else copied."""
        found = self._rows(record.name, most, points=points, seed=seed)
        rows = [row for row in found if row.kind in TOWERS]
        ids = [row.point_id for row in rows]
        stored = self._wait(self._store.retrieve(record.shard, ids, with_vectors=True))
        # A row whose vector is of another revision is being written at this moment.
        rows = [row for row in rows if stored.revisions.get(row.point_id) == row.revision]
        if not rows:
            return Sample(
                rows=[],
                bound=np.zeros((0, record.dim), np.float32),
                new=np.zeros((0, new.dim), np.float32),
            )
        bound = np.stack([stored.vectors[row.point_id] for row in rows]).astype(np.float32)
        changed = changed_towers(record, new)
        todo = [at for at, row in enumerate(rows) if TOWERS[row.kind] in changed]
        vectors = np.zeros((len(rows), new.dim), np.float32)
        good = np.ones(len(rows), np.bool_)
        kept = [at for at in range(len(rows)) if at not in set(todo)]
        if kept:
            vectors[kept] = bound[kept]
        if todo:
            vectors[todo], good[todo] = self._encoder.encode(new.version, [rows[at] for at in todo])
        return Sample(
            rows=[row for row, fit in zip(rows, good, strict=True) if fit],
            bound=bound[good],
            new=vectors[good],
            unfit=int((~good).sum()),
        )

    def _rows(self, collection: str, most: int, *, points: int, seed: int) -> list[SourceRow]:
        """Some rows of a collection, each once; all if there are no more.

        Each is the first with a revision from a random one on: quick in a large collection. After
        many changes some are likelier than others, which are those before a gap.
        """
        if points <= most:
            with self._database.transaction() as connection:
                return records.all_rows(connection, collection, most)
        with self._database.transaction() as connection:
            last = search_records.last_revision(connection, collection)
        drawn = np.random.default_rng(seed).integers(0, last + 1, 2 * most).tolist()
        found: dict[str, SourceRow] = {}
        for start in range(0, len(drawn), _DRAWN_AT_ONCE):
            part = drawn[start : start + _DRAWN_AT_ONCE]
            with self._database.transaction() as connection:
                found.update(
                    (row.point_id, row) for row in records.rows_from(connection, collection, part)
                )
            if len(found) >= most:
                break
        return list(found.values())[:most]


def collection_drift(
    record: CollectionRecord,
    costs: Costs,
    sample: Sample,
    queries: tuple[Vectors, Vectors],
    *,
    k: int,
    seed: int,
) -> drift_pb2.CollectionDrift:
    """What is told of a collection; its seconds come later.

    Args:
        queries: Vectors of the same texts by the bound version and by the new one.
    """
    drift = drift_pb2.CollectionDrift(
        name=record.name,
        bound_version=record.version,
        points=costs.points,
        texts=costs.by_tower[Tower.TEXT],
        images=costs.by_tower[Tower.VISION],
        need=costs.need,
        to_encode=costs.encoded,
        sampled=len(sample.rows),
        k=k,
    )
    within = overlap_within(sample.bound, sample.new, k, seed=seed)
    if within is not None:
        drift.k = within.k
        drift.overlap, drift.overlap_p10 = within.mean, within.p10
    found = overlap_of_queries((queries[0], sample.bound), (queries[1], sample.new), k)
    if found is not None:
        drift.queries = found.queries
        drift.query_overlap, drift.same_first = found.mean, found.same_first
    return drift
