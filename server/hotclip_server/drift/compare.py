"""One comparison of two versions: samples, shifts, neighbours, costs. Job thread only."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1 import drift_pb2, types_pb2
from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.drift import records
from hotclip_server.drift.collections import (
    Costs,
    Need,
    Sample,
    Sampler,
    changed_towers,
    collection_drift,
    costs_of,
)
from hotclip_server.drift.encoding import (
    AT_ONCE,
    TOWERS,
    SampleEncoder,
    image_row,
    text_row,
)
from hotclip_server.drift.shift import SHARES, Vectors, cosines, shift_of
from hotclip_server.drift.spec import DriftSpec
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import NotFound
from hotclip_server.jobs.context import JobContext
from hotclip_server.jobs.waiting import LoopWait
from hotclip_server.search import records as search_records
from hotclip_server.search.catalogue import new_shard
from hotclip_server.search.collections import Collections
from hotclip_server.search.protocol import PointMeta, VectorStore
from hotclip_server.search.records import CollectionRecord, SourceRow
from hotclip_server.storage.database import Database
from hotclip_server.training.lazy_pairs import Paused, in_pieces

TOWER_NUMBERS = {Tower.TEXT: types_pb2.TOWER_TEXT, Tower.VISION: types_pb2.TOWER_VISION}
_STORED = 4 * AT_ONCE
"""Points that are stored to learn how fast that is."""
_FEW = 100
"""Items on which a figure is a guess."""


class Comparison:
    """Looks at everything but the metrics of held-out data.

    Both versions are resident.
    """

    def __init__(
        self,
        job: JobContext,
        spec: DriftSpec,
        database: Database,
        collections: Collections,
        store: VectorStore,
        wait: LoopWait,
    ) -> None:
        self._job = job
        self._spec = spec
        self._database = database
        self._collections = collections
        self._store = store
        self._wait = wait
        with database.transaction() as connection:
            self._new = search_records.read_binding(connection, spec.model, spec.version)
            self._base = search_records.read_binding(connection, spec.model, spec.base_version)
        self._changed = changed_towers(self._base, self._new)
        self._encoder = SampleEncoder(collections.sources, wait, spec.model, job.check_cancelled)
        self._sampler = Sampler(database, store, self._encoder, wait)
        self._cosines: dict[Tower, list[NDArray[np.float64]]] = {tower: [] for tower in Tower}
        self._texts: dict[str, tuple[Vectors, NDArray[np.bool_]]] = {}
        self._unfit = 0
        self._gone: list[str] = []
        self._stored_per_s: float | None = None

    def run(self, dataset: StoredDataset | None) -> drift_pb2.DriftReport:
        """Fills a report."""
        spec, base, new = self._spec, self._base, self._new
        report = drift_pb2.DriftReport(
            job=self._job.id,
            model=spec.model,
            version=new.version,
            base_version=base.version,
            space_id=new.space_id,
            base_space_id=base.space_id,
        )
        chosen = self._wait(self._chosen())
        texts = self._all_texts(chosen, dataset)
        self._compare_texts(texts)
        if dataset is not None and Tower.VISION in self._changed:
            self._compare_images(dataset)
        costs: list[Costs] = []
        for place, record in enumerate(chosen, 1):
            try:
                cost = self._costs(record)
                drift = self._collection(record, cost, texts)
            except NotFound as error:
                if error.reason != "SHARD_NOT_FOUND":
                    raise
                self._gone.append(record.name)
                continue
            costs.append(cost)
            report.collections.append(drift)
            self._job.log(_line(drift))
            self._job.progress(0.8 * place / len(chosen))
        self._predict(report, costs)
        report.towers.extend(self._tower(tower) for tower in Tower)
        for tower in report.towers:
            self._job.log(_tower_line(tower))
        report.remarks.extend(self._remarks(report))
        return report

    async def _chosen(self) -> list[CollectionRecord]:
        catalogue, wanted = self._collections.catalogue, self._spec.collections
        if wanted:
            return [catalogue.get(name) for name in sorted(set(wanted))]
        return [record for record in catalogue.list() if record.model == self._spec.model]

    def _all_texts(
        self, chosen: Sequence[CollectionRecord], dataset: StoredDataset | None
    ) -> list[str]:
        """Of the request, what was searched with, captions of the dataset; each once."""
        with self._database.transaction() as connection:
            asked = records.recorded_queries(
                connection, [record.name for record in chosen], self._spec.sample
            )
        captions: list[str] = []
        if dataset is not None:
            pairs = Paused(dataset.pairs, self._job.give_way)
            known = dict.fromkeys(pair.text for pair in pairs if pair.text)
            captions = self._some(list(known))
        return list(dict.fromkeys([*self._spec.texts, *asked, *captions]))

    def _some(self, items: Sequence[str]) -> list[str]:
        """As many as the sample is large, in their order."""
        if len(items) <= self._spec.sample:
            return list(items)
        drawn = np.random.default_rng(self._spec.seed).choice(
            len(items), self._spec.sample, replace=False
        )
        return [items[at] for at in np.sort(drawn)]

    def _text_vectors(
        self, version: str, texts: Sequence[str]
    ) -> tuple[Vectors, NDArray[np.bool_]]:
        """Of all texts, and which of them a version could encode."""
        if version not in self._texts:
            rows = [text_row(text) for text in texts]
            self._texts[version] = self._encoder.encode(version, rows)
        return self._texts[version]

    def _compare_texts(self, texts: Sequence[str]) -> None:
        if not texts or Tower.TEXT not in self._changed:
            return
        old, old_good = self._text_vectors(self._base.version, texts)
        new, new_good = self._text_vectors(self._new.version, texts)
        good = old_good & new_good
        self._unfit += int((~good).sum())
        self._moved(Tower.TEXT, old[good], new[good])

    def _compare_images(self, dataset: StoredDataset) -> None:
        keys = self._some(list(in_pieces(dataset.image_keys, self._job.give_way)))
        for start in range(0, len(keys), AT_ONCE):
            part = keys[start : start + AT_ONCE]
            self._compare_rows([image_row(dataset.image_bytes(key)) for key in part])

    def _compare_rows(self, rows: Sequence[SourceRow]) -> None:
        """Encodes rows of changed towers by both versions."""
        if not rows:
            return
        old, old_good = self._encoder.encode(self._base.version, rows)
        new, new_good = self._encoder.encode(self._new.version, rows)
        good = old_good & new_good
        self._unfit += int((~good).sum())
        kept = [row for row, fit in zip(rows, good, strict=True) if fit]
        self._moved_sample(Sample(rows=kept, bound=old[good], new=new[good]))

    def _moved_sample(self, sample: Sample) -> None:
        for tower in self._changed:
            at = sample.of(tower)
            self._moved(tower, sample.bound[at], sample.new[at])

    def _moved(self, tower: Tower, old: Vectors, new: Vectors) -> None:
        """Takes note of how far vectors of the base version moved."""
        if len(old) and self._base.dim == self._new.dim:
            self._cosines[tower].append(cosines(old, new))

    def _costs(self, record: CollectionRecord) -> Costs:
        kinds, points = self._sampler.kinds(record), self._sampler.points(record)
        return costs_of(record, self._new, kinds, points)

    def _collection(
        self, record: CollectionRecord, costs: Costs, texts: Sequence[str]
    ) -> drift_pb2.CollectionDrift:
        spec = self._spec
        sample = self._sampler.sample(
            record,
            self._new,
            spec.sample if record.keep_sources else 0,
            points=costs.points,
            seed=spec.seed,
        )
        self._unfit += sample.unfit
        if record.version == self._base.version:
            self._moved_sample(sample)
        else:
            self._compare_rows([r for r in sample.rows if TOWERS[r.kind] in self._changed])
        if costs.need == Need.NEED_REINDEX and self._stored_per_s is None:
            self._stored_per_s = self._storing_rate(sample.new)
        return collection_drift(
            record, costs, sample, self._queries(record, texts), k=spec.k, seed=spec.seed
        )

    def _queries(self, record: CollectionRecord, texts: Sequence[str]) -> tuple[Vectors, Vectors]:
        """Texts by the version that a collection is bound to, and by the new one."""
        if not texts:
            return np.zeros((0, record.dim), np.float32), np.zeros((0, self._new.dim), np.float32)
        new, new_good = self._text_vectors(self._new.version, texts)
        if Tower.TEXT not in changed_towers(record, self._new):
            return new[new_good], new[new_good]
        old, old_good = self._text_vectors(record.version, texts)
        good = old_good & new_good
        return old[good], new[good]

    def _storing_rate(self, vectors: Vectors) -> float | None:
        """Points a second that a fresh shard takes; it is dropped at once."""
        vectors = vectors[:_STORED]
        if not len(vectors):
            return None
        shard = new_shard()
        self._wait(self._store.create(shard, vectors.shape[1]))
        try:
            started = time.perf_counter()
            for start in range(0, len(vectors), AT_ONCE):
                part = vectors[start : start + AT_ONCE]
                metas = [PointMeta(str(start + at), 1, {}) for at in range(len(part))]
                self._wait(self._store.upsert(shard, metas, part))
            return len(vectors) / (time.perf_counter() - started)
        finally:
            self._wait(self._store.drop(shard))

    def _predict(self, report: drift_pb2.DriftReport, costs: Sequence[Costs]) -> None:
        """Says how long reindexing takes, where every rate is known."""
        rates = {tower: self._encoder.rate(self._new.version, tower).per_s for tower in Tower}
        seconds = [cost.seconds(rates, self._stored_per_s) for cost in costs]
        for drift, predicted in zip(report.collections, seconds, strict=True):
            if not math.isnan(predicted) and drift.need != Need.NEED_SOURCES:
                drift.reindex_s = predicted
        if not any(map(math.isnan, seconds)):
            report.reindex_s = sum(seconds)

    def _tower(self, tower: Tower) -> drift_pb2.TowerDrift:
        drift = drift_pb2.TowerDrift(
            tower=TOWER_NUMBERS[tower], unchanged=tower not in self._changed
        )
        values = self._cosines[tower]
        shift = shift_of(np.concatenate(values)) if values else None
        if shift is not None:
            drift.items, drift.cosine_mean = shift.items, shift.mean
            for share, value in zip(SHARES, shift.quantiles, strict=True):
                drift.cosine_quantiles.add(share=share, value=value)
        rate = self._encoder.rate(self._new.version, tower).per_s
        if rate is not None:
            drift.items_per_s = rate
        return drift

    def _remarks(self, report: drift_pb2.DriftReport) -> list[str]:
        remarks = []
        if self._base.dim != self._new.dim:
            remarks.append(
                f"vectors have {self._new.dim} elements instead of {self._base.dim}: cosines of "
                "both are not defined"
            )
        for drift in report.towers:
            name = name_of(drift.tower)
            if not drift.unchanged and not drift.items and self._base.dim == self._new.dim:
                remarks.append(f"no item of {name} was there to be compared")
            elif not drift.unchanged and 0 < drift.items < _FEW:
                remarks.append(f"the shift of {name} was measured on {drift.items} items only")
        if self._unfit:
            remarks.append(f"{self._unfit} items could not be encoded by both versions")
        if self._gone:
            remarks.append(
                f"{', '.join(self._gone)} left out: deleted, or bound to another version meanwhile"
            )
        without = [drift.name for drift in report.collections if drift.need == Need.NEED_SOURCES]
        if without:
            remarks.append(
                f"points of {', '.join(without)} were stored without their source: they can't be "
                "reindexed, and go on with the version that they are bound to"
            )
        return remarks


def _line(drift: drift_pb2.CollectionDrift) -> str:
    need = Need.Name(drift.need).removeprefix("NEED_").lower()
    kept = (
        f", {drift.overlap:.3f} of {drift.k} neighbours stay" if drift.HasField("overlap") else ""
    )
    return f"collection {drift.name} of {drift.points} points needs: {need}{kept}"


def _tower_line(drift: drift_pb2.TowerDrift) -> str:
    name = name_of(drift.tower)
    if drift.unchanged:
        return f"{name} is unchanged"
    mean = f"mean cosine {drift.cosine_mean:.4f}" if drift.HasField("cosine_mean") else "no cosine"
    return f"{name}: {mean} of {drift.items} items"


def name_of(tower: types_pb2.Tower.ValueType) -> str:
    """As people know it."""
    return "clip-text" if tower == types_pb2.TOWER_TEXT else "clip-vision"


def figures_of(report: drift_pb2.DriftReport) -> Mapping[str, float]:
    """The numbers of a report that a job's metrics hold."""
    figures = {}
    for tower in report.towers:
        name = name_of(tower.tower)
        if tower.unchanged:
            figures[f"{name}_cosine_mean"] = 1.0
        elif tower.HasField("cosine_mean"):
            figures[f"{name}_cosine_mean"] = tower.cosine_mean
    overlaps = [drift.overlap for drift in report.collections if drift.HasField("overlap")]
    if overlaps:
        figures["overlap_at_k"] = min(overlaps)
    if report.HasField("reindex_s"):
        figures["reindex_s"] = report.reindex_s
    return figures
