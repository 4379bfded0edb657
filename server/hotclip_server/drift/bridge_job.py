"""The job that fits the bridge of a collection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hotclip_proto.v1 import drift_pb2
from hotclip_server.drift import bridges, records
from hotclip_server.drift.bridge import LEAST_ITEMS, Bridge, fit_bridge
from hotclip_server.drift.bridges import Bridges, StoredBridge
from hotclip_server.drift.collections import Sampler
from hotclip_server.drift.encoding import SampleEncoder, text_row
from hotclip_server.drift.shift import Vectors
from hotclip_server.errors import FailedPrecondition
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.records import JobKind
from hotclip_server.jobs.waiting import LoopWait
from hotclip_server.search import records as search_records
from hotclip_server.search.collections import Collections
from hotclip_server.search.encoding import Versions
from hotclip_server.search.protocol import VectorStore
from hotclip_server.search.records import CollectionRecord
from hotclip_server.storage.database import Database

DEFAULT_SAMPLE, SAMPLES = 4000, (LEAST_ITEMS, 10_000)
_QUERIES = 1000
"""Recorded queries that are measured with."""


@dataclass(frozen=True, kw_only=True)
class BridgeSpec:
    """One fit, as the job stores it."""

    collection: str
    version: str
    texts: tuple[str, ...] = ()
    sample: int = DEFAULT_SAMPLE
    k: int = 10
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the database."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> BridgeSpec:
        """What `to_json` made."""
        return cls(**{**stored, "texts": tuple(stored["texts"])})


class BridgeHandler:
    """The handler of BRIDGE jobs; `run` is for the job thread."""

    kind = JobKind.BRIDGE

    def __init__(
        self,
        database: Database,
        wait: LoopWait,
        versions: Versions,
        collections: Collections,
        store: VectorStore,
        known: Bridges,
    ) -> None:
        self._database = database
        self._wait = wait
        self._versions = versions
        self._collections = collections
        self._store = store
        self._known = known

    def run(self, job: JobContext) -> JobResult:
        """Fits; see `JobHandler.run`."""
        spec = BridgeSpec.from_json(job.spec)
        record = self._wait(self._record(spec.collection))
        holder = f"bridge:{job.id}"
        self._wait(self._versions.bind(spec.version, holder))
        try:
            job.running()
            bridge, points = self._fit(job, spec, record)
        finally:
            self._wait(self._release(spec.version, holder))
        stored = _stored(bridge, record, self._space(record, spec.version), points)
        with self._database.transaction() as connection:
            bridges.put(connection, stored)
        self._wait(self._forget(spec.collection))
        job.metric("AFTER", _figures(stored.facts), step=0, progress=1.0)
        measured = stored.facts.measured_points
        if measured < points:
            job.log(f"measured among {measured} of {points} points: among all it finds less")
        if not finds_more(stored.facts):
            job.log("a search without the bridge finds as much: it is of no use", "WARNING")
        return JobResult(
            message=f"a bridge of {spec.collection} to version {spec.version}: recall@"
            f"{stored.facts.k} {stored.facts.recall:.3f} among {measured} points"
        )

    def _fit(
        self, job: JobContext, spec: BridgeSpec, record: CollectionRecord
    ) -> tuple[Bridge, int]:
        """And how many points the collection has."""
        sources, model = self._collections.sources, record.model
        encoder = SampleEncoder(sources, self._wait, model, job.check_cancelled)
        sampler = Sampler(self._database, self._store, encoder, self._wait)
        with self._database.transaction() as connection:
            new = search_records.read_binding(connection, record.model, spec.version)
        most = spec.sample if record.keep_sources else 0
        points = sampler.points(record)
        sample = sampler.sample(record, new, most, points=points, seed=spec.seed)
        if len(sample.rows) < LEAST_ITEMS:
            raise FailedPrecondition(
                f"{len(sample.rows)} points of collection {record.name!r} can be encoded by both "
                f"versions, at least {LEAST_ITEMS} are needed",
                reason="TOO_FEW_POINTS",
            )
        job.progress(0.7)
        queries = self._queries(spec, record, encoder)
        job.check_cancelled()
        bridge = fit_bridge(sample.bound, sample.new, queries=queries, k=spec.k, seed=spec.seed)
        return bridge, points

    def _queries(
        self, spec: BridgeSpec, record: CollectionRecord, encoder: SampleEncoder
    ) -> tuple[Vectors, Vectors]:
        """Texts by the bound version and by the new one, (texts, dim) each."""
        with self._database.transaction() as connection:
            asked = records.recorded_queries(connection, [record.name], _QUERIES)
        rows = [text_row(text) for text in dict.fromkeys([*spec.texts, *asked])]
        if not rows:
            none = np.zeros((0, 0), np.float32)
            return none, none
        old, old_good = encoder.encode(record.version, rows)
        new, new_good = encoder.encode(spec.version, rows)
        good = old_good & new_good
        return old[good], new[good]

    def _space(self, record: CollectionRecord, version: str) -> search_records.Binding:
        with self._database.transaction() as connection:
            return search_records.read_binding(connection, record.model, version)

    async def _record(self, collection: str) -> CollectionRecord:
        return self._collections.catalogue.get(collection)

    async def _forget(self, collection: str) -> None:
        self._known.forget(collection)

    async def _release(self, version: str, holder: str) -> None:
        self._versions.release(version, holder)


def finds_more(facts: drift_pb2.Bridge) -> bool:
    """Whether a search over the bridge finds more than one without it: by texts where there are
    any, as people search, else by points."""
    if facts.HasField("query_recall"):
        return facts.query_recall > facts.query_recall_of_bound
    return facts.recall > facts.recall_of_bound


def _stored(
    bridge: Bridge, record: CollectionRecord, new: search_records.Binding, points: int
) -> StoredBridge:
    quality = bridge.quality
    facts = drift_pb2.Bridge(
        collection=record.name,
        bound_version=record.version,
        version=new.version,
        space_id=new.space_id,
        method=bridge.map.method,
        penalty=bridge.map.penalty,
        fitted_points=bridge.fitted_items,
        measured_points=quality.items,
        collection_points=points,
        cosine_mean=quality.cosine_mean,
        k=quality.k,
        recall=quality.recall,
        recall_of_bound=quality.recall_of_bound,
        queries=quality.queries,
        query_recall=quality.query_recall,
        query_recall_of_bound=quality.query_recall_of_bound,
    )
    facts.create_time.GetCurrentTime()
    return StoredBridge(facts=facts, shard=record.shard, map=bridge.map, bound=record.binding)


def _figures(facts: drift_pb2.Bridge) -> dict[str, float]:
    figures = {
        "recall_at_k": facts.recall,
        "recall_at_k_of_bound": facts.recall_of_bound,
        "cosine_mean": facts.cosine_mean,
    }
    if facts.HasField("query_recall"):
        figures["query_recall_at_k"] = facts.query_recall
        figures["query_recall_at_k_of_bound"] = facts.query_recall_of_bound
    return figures
